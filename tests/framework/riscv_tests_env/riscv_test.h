/* An environment for the official RISC-V tests (riscv-tests, isa/rv64u*) that needs no M-mode: they run in
 * user mode over bare addresses, and end with an ecall (a7 = 93, a0 = 0 or twice the number that failed). */
#ifndef CRUMBLE_RISCV_TEST_H
#define CRUMBLE_RISCV_TEST_H

#define RVTEST_RV64U .macro init; .endm
#define RVTEST_RV64UF .macro init; fscsr x0; .endm
#define RVTEST_RV64UV .macro init; fscsr x0; .endm

#define TESTNUM gp
#define RVTEST_CODE_BEGIN .section .text.init; .globl _start; _start: li TESTNUM, 0; init
#define RVTEST_CODE_END unimp
#define RVTEST_PASS fence; li TESTNUM, 1; li a7, 93; li a0, 0; ecall
#define RVTEST_FAIL fence; sll TESTNUM, TESTNUM, 1; or TESTNUM, TESTNUM, 1; li a7, 93; addi a0, TESTNUM, 0; ecall

#define EXTRA_DATA
#define RVTEST_DATA_BEGIN EXTRA_DATA .align 4; .global begin_signature; begin_signature:
#define RVTEST_DATA_END .align 4; .global end_signature; end_signature:

#endif
