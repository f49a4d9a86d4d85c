// The translator's floating point.
#include "rv64/jit_translate.h"

#if defined(__x86_64__)

void crb_jit_float_forget(crb_translation *t) {
    memset(t->cached, -1, sizeof t->cached);
}

bool crb_jit_float(crb_translation *t, const crb_op *op) {
    return false;
}

#endif
