// A block's decoded operations to machine code, in one pass. Control flow and the shared parts are
// here; jit_integer.c, jit_memory.c and jit_float.c have the other operations.
#include "rv64/jit_translate.h"

#if defined(__x86_64__)

// The registers that compilers use most (and all that compressed instructions can name).
#define NONE8 -1, -1, -1, -1, -1, -1, -1, -1
const int8_t crb_jit_host[CRB_REGS] = {
    -1,    -1,    RBX,   -1,    -1,    -1,    -1,  -1,  // x0 to x7: sp
    RSI,   RDI,   R8,    R9,    R10,   R11,   R12, R14, // s0, s1, a0 to a5
    NONE8, NONE8, NONE8, NONE8, NONE8, NONE8, -1};

// x86-64-v3: what three-operand shifts, counts and fused multiplication need.
bool crb_jit_host_able(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("lzcnt");
}

// ---- What blocks share

static void save_guest(crb_emit *e) {
    for (int g = 0; g < 32; g++)
        if (crb_jit_host[g] >= 0) x86_store(e, crb_jit_host[g], RBP, GUEST(g));
    x86_store(e, BUDGET, RBP, HART(budget));
}

static void load_guest(crb_emit *e) {
    for (int g = 0; g < 32; g++)
        if (crb_jit_host[g] >= 0) x86_load(e, crb_jit_host[g], RBP, GUEST(g));
}

// RBX is free: guest registers are saved.
static void call_c(crb_emit *e, uintptr_t function) {
    x86_mov(e, RBX, RSP);
    x86_alu_ri(e, true, ALU_AND, RSP, -16);
    x86_lea(e, RDI, RBP, -BIAS);
    x86_mov_imm(e, RAX, function);
    x86_indirect(e, 2, RAX);
    x86_mov(e, RSP, RBX);
}

static const uint8_t saved[] = {RBX, RBP, R12, R13, R14, R15};

static uint32_t here(const struct crb_jit *jit, const crb_emit *e) {
    return (uint32_t)(e->at - jit->rw);
}

// Out of translated code with EAX for an answer, and out of all calls.
static void put_return(crb_emit *e) {
    x86_load(e, RSP, RBP, HART(jit_stack));
    x86_alu_ri(e, true, ALU_ADD, RSP, 8);
    for (int i = sizeof saved - 1; i >= 0; i--)
        x86_pop(e, saved[i]);
    x86_ret(e);
}

// Goes where crb_jit_follow() or crb_jit_indirect() says.
static void put_resolve(crb_emit *e, uintptr_t function) {
    save_guest(e);
    x86_rr(e, false, 0x8b, RSI, RCX);
    call_c(e, function);
    x86_rr(e, true, 0x85, RAX, RAX);
    uint8_t *none = x86_jcc_later(e, CC_E);
    load_guest(e);
    x86_indirect(e, 4, RAX);
    x86_place(none, e->at);
    x86_rm(e, false, 0x8b, RAX, RBP, HART(jit_result));
    put_return(e);
}

static void put_enter(crb_emit *e) {
    for (uint32_t i = 0; i < sizeof saved; i++)
        x86_push(e, saved[i]);
    x86_alu_ri(e, true, ALU_SUB, RSP, 8);
    x86_lea(e, RBP, RDI, BIAS);
    x86_store(e, RSP, RBP, HART(jit_stack));
    x86_mov(e, RAX, RSI);
    x86_load(e, BUDGET, RBP, HART(budget));
    x86_load(e, TLB, RBP, HART(tlb));
    load_guest(e);
    x86_indirect(e, 4, RAX);
}

// ECX is the operation. Returns when there is nothing else to do; sstatus may be another.
static void put_slow(crb_emit *e) {
    save_guest(e);
    x86_rr(e, false, 0x8b, RSI, RCX);
    call_c(e, (uintptr_t)crb_jit_slow);
    x86_rr(e, false, 0x85, RAX, RAX);
    uint8_t *out = x86_jcc_later(e, CC_NE);
    load_guest(e);
    x86_load(e, TLB, RBP, HART(tlb));
    x86_ret(e);
    x86_place(out, e->at);
    put_return(e);
}

// ECX is the operation that the interpreter goes on with.
static void put_leave(crb_emit *e) {
    save_guest(e);
    x86_rm(e, false, 0x89, RCX, RBP, HART(jit_op));
    x86_mov_imm(e, RAX, CRB_JIT_OP);
    put_return(e);
}

// A thread that has one would not let go of calls that never return.
static bool shadow_stack(void) {
    uint64_t top = 0;
    __asm__ volatile("rdsspq %0" : "+r"(top)); // does nothing where there is none
    return top != 0;
}

void crb_jit_stubs(struct crb_jit *jit) {
    crb_emit e = {.at = jit->rw + 16};
    jit->enter = here(jit, &e);
    put_enter(&e);
    jit->slow = here(jit, &e);
    put_slow(&e);
    jit->leave = here(jit, &e);
    put_leave(&e);
    jit->link = here(jit, &e);
    put_resolve(&e, (uintptr_t)crb_jit_follow);
    // RAX is the virtual address.
    jit->jump = here(jit, &e);
    x86_store(&e, RAX, RBP, HART(pc));
    put_resolve(&e, (uintptr_t)crb_jit_indirect);
    // The same, from the call that ECX is the exit of.
    jit->back = here(jit, &e);
    x86_store(&e, RAX, RBP, HART(pc));
    put_resolve(&e, (uintptr_t)crb_jit_back);
    jit->returns = !shadow_stack();
    jit->used = here(jit, &e);
}

void crb_jit_call_slow(crb_translation *t, const crb_op *op) {
    x86_mov_imm(&t->e, RCX, op_index(t, op));
    x86_call(&t->e, t->jit->rw + t->jit->slow);
    crb_jit_float_forget(t);
    if (t->group_end != 0) t->full = true; // is_safe() was wrong: RDX is lost
}

void crb_jit_cold_slow(crb_translation *t, uint8_t *from, const crb_op *op) {
    crb_cold *cold = crb_jit_cold(t, from, COLD_SLOW, op_index(t, op));
    memcpy(cold->cached, t->cached, sizeof cold->cached);
    cold->slot = t->group_end != 0 ? (uint32_t)(op - t->entry) + 1 : 0;
}

// ---- Leaving a block

// Where an operation goes to, as an offset from the start of its page.
static int32_t target_of(const crb_translation *t, const crb_op *op, uint32_t linked) {
    return op->kind == linked ? t->hart->meta[op->imm].offset : op->imm;
}

static uint32_t new_exit(crb_translation *t, uint8_t *jump, int32_t target, uint32_t site) {
    struct crb_jit *jit = t->jit;
    const uint32_t index = jit->n_exits++;
    jit->exits[index] = (crb_jit_exit){
        .jump = (uint32_t)(jump - jit->rw),
        .code_page = t->code_page,
        .target = target,
        .site = site,
    };
    return index;
}

// Subtracts what has been executed; the exit's cold part sees that time is up.
static void spend(crb_translation *t, uint32_t count) {
    x86_alu_ri(&t->e, true, ALU_SUB, BUDGET, (int32_t)count);
}

static void exit_near(crb_translation *t, int32_t target, uint32_t count) {
    spend(t, count);
    uint8_t *late = x86_jcc_later(&t->e, CC_S);
    uint8_t *jump = x86_jmp_later(&t->e);
    const uint32_t exit = new_exit(t, jump, target, 0);
    crb_jit_cold(t, late, COLD_FOLLOW, exit);
    crb_jit_cold(t, jump, COLD_FOLLOW, exit);
}

// To another page, RAX being the virtual address. Which one the exit is linked for is written at a
// place of its own, its site; any other is for its cold part, as all are before it is linked.
static uint32_t exit_by_site(crb_translation *t, int32_t target, cold_kind cold, uint32_t stub) {
    crb_emit *e = &t->e;
    struct crb_jit *jit = t->jit;
    const uint32_t site = jit->n_sites++;
    uint8_t *at = jit->rw + CRB_JIT_CODE + site * sizeof(crb_jit_site);
    memset(at, 0, sizeof(crb_jit_site));
    x86_rm(e, false, 0x8b, RCX, RBP, HART(jump_gen));
    x86_rip(e, true, ALU_CMP, RAX, at);
    uint8_t *other = x86_jcc_later(e, CC_NE);
    x86_rip(e, false, ALU_CMP, RCX, at + offsetof(crb_jit_site, gen));
    uint8_t *old = x86_jcc_later(e, CC_NE);
    x86_alu_ri(e, true, ALU_AND, RAX, -(int32_t)CRB_PAGE_SIZE);
    x86_store(e, RAX, RBP, HART(page_va));
    uint8_t *jump = x86_jmp_later(e);
    x86_place(jump, jit->rw + stub);
    const uint32_t exit = new_exit(t, jump, target, site);
    crb_jit_cold(t, other, cold, exit);
    crb_jit_cold(t, old, cold, exit);
    return exit;
}

static void exit_far(crb_translation *t, int32_t target, uint32_t count) {
    spend(t, count);
    uint8_t *late = x86_jcc_later(&t->e, CC_S);
    x86_load(&t->e, RAX, RBP, HART(page_va));
    x86_alu_ri(&t->e, true, ALU_ADD, RAX, target);
    crb_jit_cold(t, late, COLD_FOLLOW, exit_by_site(t, target, COLD_FOLLOW, t->jit->link));
}

static void exit_to(crb_translation *t, int32_t target, uint32_t count) {
    if (target >= 0 && target < (int32_t)CRB_PAGE_SIZE)
        exit_near(t, target, count);
    else
        exit_far(t, target, count);
}

// RAX is the virtual address.
static void find(crb_translation *t) {
    crb_emit *e = &t->e;
    // ECX = crb_jump_slot() * 16
    x86_rorx32(e, RCX, RAX, 8);
    x86_mov32(e, RDX, RAX);
    x86_shift_imm(e, false, SHIFT_SHL, RDX, 3);
    x86_rr(e, false, ALU_XOR, RCX, RDX);
    x86_alu_ri(e, false, ALU_AND, RCX, (CRB_JUMPS - 1) << 4);
    x86_rx(e, true, ALU_CMP, RAX, RBP, RCX, HART(jit_jumps) + (int32_t)offsetof(crb_jump, pc));
    uint8_t *other = x86_jcc_later(e, CC_NE);
    x86_rm(e, false, 0x8b, RDX, RBP, HART(jump_gen));
    x86_rx(e, false, ALU_CMP, RDX, RBP, RCX, HART(jit_jumps) + (int32_t)offsetof(crb_jump, gen));
    uint8_t *old = x86_jcc_later(e, CC_NE);
    x86_rx(e, false, 0x8b, RCX, RBP, RCX, HART(jit_jumps) + (int32_t)offsetof(crb_jump, op));
    x86_rm(e, true, 0x03, RCX, RBP, HART(jit_code));
    x86_alu_ri(e, true, ALU_AND, RAX, -(int32_t)CRB_PAGE_SIZE);
    x86_store(e, RAX, RBP, HART(page_va));
    x86_indirect(e, 4, RCX);
    const uint8_t *jump = t->jit->rw + t->jit->jump;
    x86_place(other, jump);
    x86_place(old, jump);
}

static void exit_indirect(crb_translation *t, uint32_t count) {
    spend(t, count);
    x86_place(x86_jcc_later(&t->e, CC_S), t->jit->rw + t->jit->jump);
    find(t);
}

// ---- Calls and returns
//
// A guest's call is one of the host's, which then predicts where its return goes. That leads behind
// the call, and there it is seen whether it is the right place, as for a jump to another page: what
// the stack holds may be anybody's. It has as many entries as there are instructions in a slice
// (hart.c), and none outside of translated code.

static bool is_link(uint32_t guest) {
    return guest == 1 || guest == 5;
}

static void call(crb_translation *t, const crb_op *op) {
    if (!is_link(op->rd) || !t->jit->returns) return;
    uint8_t *over = x86_call_later(&t->e);
    exit_by_site(t, op[1].imm, COLD_BACK, t->jit->back); // RAX is the virtual address
    x86_place(over, t->e.at);
}

// Only an address that may be this call's is worth a link.
static void back(crb_translation *t, const crb_cold *cold) {
    crb_emit *e = &t->e;
    x86_mov32(e, RCX, RAX);
    x86_alu_ri(e, false, ALU_AND, RCX, CRB_PAGE_SIZE - 1);
    x86_alu_ri(e, false, ALU_CMP, RCX, t->jit->exits[cold->value].target & (CRB_PAGE_SIZE - 1));
    uint8_t *other = x86_jcc_later(e, CC_NE);
    x86_mov_imm(e, RCX, cold->value);
    x86_jmp(e, t->jit->rw + t->jit->back);
    x86_place(other, e->at);
    find(t);
}

// RAX is the virtual address.
static void exit_return(crb_translation *t, uint32_t count) {
    crb_emit *e = &t->e;
    spend(t, count);
    x86_place(x86_jcc_later(e, CC_S), t->jit->rw + t->jit->jump);
    x86_rm(e, true, ALU_CMP, RSP, RBP, HART(jit_stack));
    crb_jit_cold(t, x86_jcc_later(e, CC_E), COLD_FIND, 0);
    x86_ret(e);
}

// ---- Control flow

// The slot of this block at a later page offset, 0 none.
static uint32_t slot_at(const crb_translation *t, const crb_op *op, int32_t target) {
    const crb_op_meta *meta = &t->hart->meta[op_index(t, t->entry)];
    for (uint32_t slot = (uint32_t)(op - t->entry) + 1; slot < t->n_slots; slot++)
        if (meta[slot].offset == target && meta[slot].length != 0 &&
            t->entry[slot].kind != CRB_OP_DATA)
            return slot;
    return 0;
}

bool crb_jit_jumps_inside(const crb_translation *t, const crb_op *op) {
    const bool linked = op->kind >= CRB_OP_BEQ_L && op->kind <= CRB_OP_BGEU_L;
    return slot_at(t, op, linked ? t->hart->meta[op->imm].offset : op->imm) != 0;
}

static int condition_of(uint32_t branch) {
    static const uint8_t conditions[] = {CC_E, CC_NE, CC_L, CC_GE, CC_B, CC_AE};
    return conditions[branch];
}

static void compare(crb_translation *t, const crb_op *op) {
    if (op->rs2 == 0) {
        const int host = crb_jit_host[op->rs1];
        if (host >= 0)
            x86_rr(&t->e, true, 0x85, host, host);
        else
            x86_alu_mi(&t->e, true, ALU_CMP, RBP, GUEST(op->rs1), 0);
        return;
    }
    const int a = crb_jit_source(t, op->rs1, RAX);
    crb_jit_with(t, true, ALU_CMP, a, op->rs2);
}

// Forward within the block: instructions that are skipped are given back.
static void skip_to(crb_translation *t, const crb_op *op, uint32_t slot, int unless) {
    const crb_op_meta *meta = &t->hart->meta[op_index(t, t->entry)];
    uint8_t *not_taken = x86_jcc_later(&t->e, unless);
    const int32_t skipped = meta[slot].count - op->rd;
    if (skipped != 0) x86_lea(&t->e, BUDGET, BUDGET, skipped);
    t->jumps[t->n_jumps] = x86_jmp_later(&t->e);
    t->jumps_to[t->n_jumps++] = slot;
    x86_place(not_taken, t->e.at);
}

// A branch over one simple instruction: its result is chosen, and nothing can be mispredicted.
static bool select_one(crb_translation *t, const crb_op *op, uint32_t slot, int condition) {
    crb_emit *e = &t->e;
    const crb_op *skipped = op + 1;
    const crb_op_meta *meta = &t->hart->meta[op_index(t, t->entry)];
    const uint32_t at = (uint32_t)(skipped - t->entry);
    if (slot != at + 1 || meta[slot].count - op->rd != 1 || crb_jit_is_join(t, at)) return false;
    if (skipped->kind < CRB_OP_LI || skipped->kind > CRB_OP_SRAW) return false;
    const int rd = crb_jit_host[skipped->rd];
    if (rd < 0 || skipped->rd == op->rs1 || skipped->rd == op->rs2) return false;
    x86_mov(e, RDX, rd);
    crb_jit_integer(t, skipped); // leaves RDX alone
    compare(t, op);
    x86_rr(e, true, 0x0f40 | (uint32_t)condition, rd, RDX);
    x86_lea(e, RCX, BUDGET, 1);
    x86_rr(e, true, 0x0f40 | (uint32_t)condition, BUDGET, RCX);
    t->done = slot;
    return true;
}

static void branch(crb_translation *t, const crb_op *op) {
    const uint32_t group = (op->kind - CRB_OP_BEQ_U) / 6;
    const uint32_t which = (op->kind - CRB_OP_BEQ_U) % 6;
    const int32_t target = group == 1 ? t->hart->meta[op->imm].offset : op->imm;
    const int condition = condition_of(which);
    const uint32_t slot = slot_at(t, op, target);
    if (slot != 0 && select_one(t, op, slot, condition)) return;
    compare(t, op);
    if (slot != 0) {
        skip_to(t, op, slot, condition ^ 1);
    } else if (target <= t->hart->meta[op_index(t, op)].offset) {
        uint8_t *not_taken = x86_jcc_later(&t->e, condition ^ 1);
        exit_to(t, target, op->rd);
        x86_place(not_taken, t->e.at);
    } else {
        uint8_t *taken = x86_jcc_later(&t->e, condition);
        crb_jit_cold(t, taken, COLD_TAKEN, (uint32_t)(op - t->entry))->back = NULL;
    }
}

static void link_register(crb_translation *t, const crb_op *op) {
    if (op->rd == CRB_SINK) return;
    const int to = crb_jit_target(op->rd, RCX);
    x86_load(&t->e, to, RBP, HART(page_va));
    x86_alu_ri(&t->e, true, ALU_ADD, to, op[1].imm);
    crb_jit_set(t, op->rd, to);
}

static void jump(crb_translation *t, const crb_op *op, uint32_t linked) {
    if (op->kind >= CRB_OP_JAL_U && op->kind <= CRB_OP_JAL_X) {
        link_register(t, op);
        call(t, op);
    }
    exit_to(t, target_of(t, op, linked), op->rs2);
}

// auipc and jalr: a call whose target is known.
static bool direct_jalr(crb_translation *t, const crb_op *op) {
    const crb_op *before = op - 1;
    const uint32_t slot = (uint32_t)(op - t->entry);
    if (slot < 2 || before->kind != CRB_OP_AUIPC || before->rd != op->rs1) return false;
    if (crb_jit_is_join(t, slot)) return false;
    const int64_t target = ((int64_t)before->imm + op->imm) & ~1ll;
    if (target != (int32_t)target) return false;
    link_register(t, op);
    call(t, op);
    exit_to(t, (int32_t)target, op->rs2);
    return true;
}

static void jalr(crb_translation *t, const crb_op *op) {
    if (direct_jalr(t, op)) return;
    const int base = crb_jit_source(t, op->rs1, RAX);
    if (op->imm != 0)
        x86_lea(&t->e, RAX, base, op->imm);
    else
        x86_mov(&t->e, RAX, base);
    x86_alu_ri(&t->e, true, ALU_AND, RAX, -2);
    if (op->kind == CRB_OP_JALR) {
        link_register(t, op);
        call(t, op);
    } else if (is_link(op->rs1) && t->jit->returns) {
        exit_return(t, op->rs2);
        return;
    }
    exit_indirect(t, op->rs2);
}

// True when the operation ended the block.
static bool control(crb_translation *t, const crb_op *op) {
    switch (op->kind) {
    case CRB_OP_BEQ_U ... CRB_OP_BGEU_X:
        branch(t, op);
        return false;
    case CRB_OP_J_U ... CRB_OP_J_X:
        jump(t, op, CRB_OP_J_L);
        return true;
    case CRB_OP_JAL_U ... CRB_OP_JAL_X:
        jump(t, op, CRB_OP_JAL_L);
        return true;
    case CRB_OP_JR:
    case CRB_OP_JALR:
        jalr(t, op);
        return true;
    default: // END
        exit_to(t, target_of(t, op, CRB_OP_END_L), op->rd);
        return true;
    }
}

// ---- Operations

static void fence(crb_translation *t, const crb_op *op) {
    crb_emit *e = &t->e;
    if (op->kind == CRB_OP_FENCE_FULL) {
        put8(e, 0x0f); // mfence
        put8(e, 0xae);
        put8(e, 0xf0);
    }
    x86_load(e, RAX, RBP, HART(moved_count));
    x86_load(e, RAX, RAX, 0);
    x86_rm(e, true, ALU_CMP, RAX, RBP, HART(moved_seen));
    crb_jit_cold_slow(t, x86_jcc_later(e, CC_NE), op);
}

static bool is_control(uint32_t kind) {
    return kind >= CRB_OP_BEQ_U && kind <= CRB_OP_END_X;
}

static void interpret(crb_translation *t, const crb_op *op) {
    x86_mov_imm(&t->e, RCX, op_index(t, op));
    x86_jmp(&t->e, t->jit->rw + t->jit->leave);
}

// What nothing above does: by a call, or given back to the interpreter for the rest of the block.
// True when the block ends.
static bool other(crb_translation *t, const crb_op *op) {
    switch (op->kind) {
    case CRB_OP_FENCE:
    case CRB_OP_FENCE_FULL:
        fence(t, op);
        return false;
    case CRB_OP_STRADDLE:
    case CRB_OP_CSR:
    case CRB_OP_CBO:
    case CRB_OP_MISC:
    case CRB_OP_VECTOR:
    case CRB_OP_FP ... CRB_OP_FNMADD_D:
        crb_jit_call_slow(t, op);
        t->checked = 0;
        t->boxed = 0;
        return false;
    case CRB_OP_FENCE_I:
    case CRB_OP_ECALL:
    case CRB_OP_EBREAK:
    case CRB_OP_SRET:
    case CRB_OP_WFI:
    case CRB_OP_SFENCE:
    case CRB_OP_ILLEGAL:
        crb_jit_call_slow(t, op);
        put8(&t->e, 0xcc); // it never comes back
        return true;
    default:
        interpret(t, op);
        return true;
    }
}

// True when the block ends.
static bool operation(crb_translation *t, const crb_op *op) {
    if (is_control(op->kind)) return control(t, op);
    if (crb_jit_integer(t, op) || crb_jit_memory(t, op) || crb_jit_float(t, op)) return false;
    return other(t, op);
}

// ---- Cold parts

static void follow(crb_translation *t, const crb_cold *cold) {
    x86_mov_imm(&t->e, RCX, cold->value);
    x86_jmp(&t->e, t->jit->rw + t->jit->link);
}

static void taken(crb_translation *t, const crb_cold *cold) {
    const crb_op *op = t->entry + cold->value;
    const bool linked = op->kind >= CRB_OP_BEQ_L && op->kind <= CRB_OP_BGEU_L;
    exit_to(t, linked ? t->hart->meta[op->imm].offset : op->imm, op->rd);
}

static void slow(crb_translation *t, const crb_cold *cold) {
    x86_mov_imm(&t->e, RCX, cold->value);
    x86_call(&t->e, t->jit->rw + t->jit->slow);
    for (int i = 0; i < CACHE_ANY; i++)
        if (cold->cached[i] >= 0)
            vex_rm(&t->e, VEX_0F, VEX_F2, false, 0x10, i, 0, RBP, GUEST(CRB_F(cold->cached[i])));
    const uint8_t *other = cold->slot != 0 ? t->other_places[cold->slot] : NULL;
    x86_jmp(&t->e, other != NULL ? other : cold->back);
}

// A group's operations once more, each for itself.
static void ungrouped(crb_translation *t, const crb_cold *cold) {
    memcpy(t->cached, cold->cached, sizeof t->cached);
    t->next_cached = cold->next_cached;
    t->checked = cold->checked;
    t->boxed = cold->boxed;
    t->ungrouped = true;
    for (uint32_t slot = cold->value; slot < cold->slot; slot++) {
        t->other_places[slot] = t->e.at;
        operation(t, t->entry + slot);
    }
    x86_jmp(&t->e, t->places[cold->slot]);
}

static void put_cold(crb_translation *t, uint32_t index) {
    const crb_cold cold = t->cold[index];
    // Several jumps to the same exit share its part.
    const bool shared = cold.kind == COLD_FOLLOW || cold.kind == COLD_BACK;
    const bool again = index > 0 && shared && t->cold[index - 1].kind == cold.kind &&
                       t->cold[index - 1].value == cold.value;
    x86_place(cold.from, again ? t->cold[index - 1].back : t->e.at);
    if (shared) t->cold[index].back = again ? t->cold[index - 1].back : t->e.at;
    if (again) return;
    switch (cold.kind) {
    case COLD_SLOW:
        slow(t, &cold);
        break;
    case COLD_INTERPRET:
        interpret(t, t->hart->ops + cold.value);
        break;
    case COLD_FOLLOW:
        follow(t, &cold);
        break;
    case COLD_TAKEN:
        taken(t, &cold);
        break;
    case COLD_NAN:
        crb_jit_put_nan(t, &cold);
        break;
    case COLD_GROUP:
        ungrouped(t, &cold);
        break;
    case COLD_BACK:
        back(t, &cold);
        break;
    case COLD_FIND:
        find(t);
        break;
    }
}

// ---- Blocks

static uint32_t count_slots(const crb_op *entry) {
    uint32_t slot = 1;
    while (entry[slot].kind < CRB_OP_END_U || entry[slot].kind > CRB_OP_END_X)
        slot++;
    return slot + 1;
}

static void place_jumps(crb_translation *t) {
    for (uint32_t i = 0; i < t->n_jumps; i++)
        x86_place(t->jumps[i], t->places[t->jumps_to[i]]);
}

// Which operations are jumped to from inside: nothing is known there of registers.
static void find_joins(crb_translation *t) {
    for (uint32_t slot = 1; slot < t->n_slots; slot++) {
        const crb_op *op = t->entry + slot;
        if (op->kind < CRB_OP_BEQ_U || op->kind > CRB_OP_BGEU_L) continue;
        const bool linked = op->kind >= CRB_OP_BEQ_L;
        const int32_t target = linked ? t->hart->meta[op->imm].offset : op->imm;
        const uint32_t to = slot_at(t, op, target);
        t->joins[to / 64] |= 1ull << (to % 64);
    }
    t->joins[0] &= ~1ull;
}

static void body(crb_translation *t) {
    find_joins(t);
    for (uint32_t slot = 1; slot < t->n_slots; slot++) {
        if (slot < t->done) continue;
        t->places[slot] = t->e.at;
        if (crb_jit_is_join(t, slot)) {
            crb_jit_float_forget(t);
            t->boxed = 0;
            t->checked = 0;
        }
        crb_jit_group(t, slot);
        // Behind an end there may be what a branch jumps to.
        if (!operation(t, t->entry + slot)) continue;
        do
            slot++;
        while (slot < t->n_slots && !crb_jit_is_join(t, slot));
        slot--;
    }
    place_jumps(t);
}

uint32_t crb_jit_translate(crb_hart *hart, crb_op *entry, uint32_t code_page) {
    static _Thread_local crb_translation translation;
    crb_translation *t = &translation;
    struct crb_jit *jit = hart->jit;
    const uint32_t exits = jit->n_exits;
    const uint32_t sites = jit->n_sites;
    memset(t, 0, offsetof(crb_translation, cold));
    t->e.at = jit->rw + ((jit->used + 4 + 15) & ~15u);
    t->hart = hart;
    t->jit = jit;
    t->entry = entry;
    t->n_slots = count_slots(entry);
    t->code_page = code_page;
    crb_jit_float_forget(t);
    uint8_t *const code = t->e.at;
    const uint32_t self = new_exit(t, code + 1, hart->meta[entry - hart->ops].offset, 0);
    body(t);
    for (uint32_t i = 0; i < t->n_cold; i++)
        put_cold(t, i);
    const uint32_t dead = here(jit, &t->e);
    x86_mov_imm(&t->e, RCX, self);
    x86_jmp(&t->e, jit->rw + jit->link);
    memcpy(code - 4, &dead, 4);
    if (t->full) {
        jit->n_exits = exits;
        jit->n_sites = sites;
        return 0;
    }
    jit->used = here(jit, &t->e);
    return (uint32_t)(code - jit->rw);
}

#else

const int8_t crb_jit_host[CRB_REGS];

bool crb_jit_host_able(void) {
    return false;
}

void crb_jit_stubs(struct crb_jit *jit) {}

uint32_t crb_jit_translate(crb_hart *hart, crb_op *entry, uint32_t code_page) {
    return 0;
}

#endif
