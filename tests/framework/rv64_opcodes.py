"""The opcode listings of rv64gc, Zba, Zbb, Zbs, Zicsr, Zifencei, Zicbom, Zicboz and S-mode.

Names, formats and fixed bits only: rv64_asm.py puts the operands in.
"""

from __future__ import annotations

from typing import NamedTuple


class Form(NamedTuple):
    """How one instruction is made: its format's name and the fixed bits of its word."""

    kind: str
    match: int


def _rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().splitlines()]


# name opcode funct3 funct7
_R = """
add 33 0 00
sub 33 0 20
sll 33 1 00
slt 33 2 00
sltu 33 3 00
xor 33 4 00
srl 33 5 00
sra 33 5 20
or 33 6 00
and 33 7 00
addw 3b 0 00
subw 3b 0 20
sllw 3b 1 00
srlw 3b 5 00
sraw 3b 5 20
mul 33 0 01
mulh 33 1 01
mulhsu 33 2 01
mulhu 33 3 01
div 33 4 01
divu 33 5 01
rem 33 6 01
remu 33 7 01
mulw 3b 0 01
divw 3b 4 01
divuw 3b 5 01
remw 3b 6 01
remuw 3b 7 01
add.uw 3b 0 04
sh1add 33 2 10
sh2add 33 4 10
sh3add 33 6 10
sh1add.uw 3b 2 10
sh2add.uw 3b 4 10
sh3add.uw 3b 6 10
andn 33 7 20
orn 33 6 20
xnor 33 4 20
max 33 6 05
maxu 33 7 05
min 33 4 05
minu 33 5 05
rol 33 1 30
rolw 3b 1 30
ror 33 5 30
rorw 3b 5 30
bclr 33 1 24
bext 33 5 24
binv 33 1 34
bset 33 1 14
fsgnj.s 53 0 10
fsgnjn.s 53 1 10
fsgnjx.s 53 2 10
fmin.s 53 0 14
fmax.s 53 1 14
fle.s 53 0 50
flt.s 53 1 50
feq.s 53 2 50
fsgnj.d 53 0 11
fsgnjn.d 53 1 11
fsgnjx.d 53 2 11
fmin.d 53 0 15
fmax.d 53 1 15
fle.d 53 0 51
flt.d 53 1 51
feq.d 53 2 51
"""

# rd, rs1 with the rest fixed: name opcode funct3 imm12
_UNARY = """
clz 13 1 600
ctz 13 1 601
cpop 13 1 602
sext.b 13 1 604
sext.h 13 1 605
clzw 1b 1 600
ctzw 1b 1 601
cpopw 1b 1 602
zext.h 3b 4 080
orc.b 13 5 287
rev8 13 5 6b8
fmv.x.w 53 0 e00
fclass.s 53 1 e00
fmv.w.x 53 0 f00
fmv.x.d 53 0 e20
fclass.d 53 1 e20
fmv.d.x 53 0 f20
"""

# name opcode funct3
_I = """
addi 13 0
slti 13 2
sltiu 13 3
xori 13 4
ori 13 6
andi 13 7
addiw 1b 0
jalr 67 0
"""

_LOAD = """
lb 03 0
lh 03 1
lw 03 2
ld 03 3
lbu 03 4
lhu 03 5
lwu 03 6
flw 07 2
fld 07 3
"""

_STORE = """
sb 23 0
sh 23 1
sw 23 2
sd 23 3
fsw 27 2
fsd 27 3
"""

# name opcode funct3 imm12's fixed bits
_SHIFT = """
slli 13 1 000
srli 13 5 000
srai 13 5 400
slliw 1b 1 000
srliw 1b 5 000
sraiw 1b 5 400
slli.uw 1b 1 080
rori 13 5 600
roriw 1b 5 600
bclri 13 1 480
bexti 13 5 480
binvi 13 1 680
bseti 13 1 280
"""

_BRANCH = """
beq 63 0
bne 63 1
blt 63 4
bge 63 5
bltu 63 6
bgeu 63 7
"""

# name funct3 funct5
_AMO = """
lr.w 2 02
sc.w 2 03
amoswap.w 2 01
amoadd.w 2 00
amoxor.w 2 04
amoand.w 2 0c
amoor.w 2 08
amomin.w 2 10
amomax.w 2 14
amominu.w 2 18
amomaxu.w 2 1c
"""

# rd, rs1, rs2 with rm: name funct7
_FP2 = """
fadd.s 00
fsub.s 04
fmul.s 08
fdiv.s 0c
fadd.d 01
fsub.d 05
fmul.d 09
fdiv.d 0d
"""

# rd, rs1 with rm: name funct7 rs2
_FP1 = """
fsqrt.s 2c 0
fsqrt.d 2d 0
fcvt.w.s 60 0
fcvt.wu.s 60 1
fcvt.l.s 60 2
fcvt.lu.s 60 3
fcvt.s.w 68 0
fcvt.s.wu 68 1
fcvt.s.l 68 2
fcvt.s.lu 68 3
fcvt.w.d 61 0
fcvt.wu.d 61 1
fcvt.l.d 61 2
fcvt.lu.d 61 3
fcvt.d.w 69 0
fcvt.d.wu 69 1
fcvt.d.l 69 2
fcvt.d.lu 69 3
fcvt.s.d 20 1
fcvt.d.s 21 0
"""

# name opcode; .s has 0, .d has 1 in bits 26..25
_FMA = """
fmadd 43
fmsub 47
fnmsub 4b
fnmadd 4f
"""

_CSR = """
csrrw 1
csrrs 2
csrrc 3
csrrwi 5
csrrsi 6
csrrci 7
"""

# whole words
_FIXED = """
ecall 00000073
ebreak 00100073
sret 10200073
wfi 10500073
fence.i 0000100f
"""

# rs1 only
_CACHE = """
cbo.inval 0000200f
cbo.clean 0010200f
cbo.flush 0020200f
cbo.zero 0040200f
"""

CSR = {
    "fflags": 0x001, "frm": 0x002, "fcsr": 0x003, "cycle": 0xC00, "time": 0xC01, "instret": 0xC02,
    "sstatus": 0x100, "sie": 0x104, "stvec": 0x105, "scounteren": 0x106, "senvcfg": 0x10A,
    "sscratch": 0x140, "sepc": 0x141, "scause": 0x142, "stval": 0x143, "sip": 0x144,
    "stimecmp": 0x14D, "satp": 0x180,
}  # fmt: skip


def _word(opcode: str, funct3: str, top: int = 0) -> int:
    return int(opcode, 16) | int(funct3) << 12 | top


def _integer() -> dict[str, Form]:
    table: dict[str, Form] = {}
    for name, opcode, funct3, funct7 in _rows(_R):
        table[name] = Form("r", _word(opcode, funct3, int(funct7, 16) << 25))
    for kind, text in (("unary", _UNARY), ("shift", _SHIFT)):
        for name, opcode, funct3, imm in _rows(text):
            table[name] = Form(kind, _word(opcode, funct3, int(imm, 16) << 20))
    for kind, text in (("i", _I), ("load", _LOAD), ("store", _STORE), ("branch", _BRANCH)):
        for name, opcode, funct3 in _rows(text):
            table[name] = Form(kind, _word(opcode, funct3))
    for name, funct3, funct5 in _rows(_AMO):
        match = _word("2f", funct3, int(funct5, 16) << 27)
        kind = "lr" if name == "lr.w" else "amo"
        table[name] = Form(kind, match)
        table[name[:-1] + "d"] = Form(kind, match | 1 << 12)
    table.update(lui=Form("u", 0x37), auipc=Form("u", 0x17), jal=Form("j", 0x6F))
    return table


def _float() -> dict[str, Form]:
    table: dict[str, Form] = {}
    for name, funct7 in _rows(_FP2):
        table[name] = Form("fp2", _word("53", "0", int(funct7, 16) << 25))
    for name, funct7, rs2 in _rows(_FP1):
        table[name] = Form("fp1", _word("53", "0", int(funct7, 16) << 25 | int(rs2) << 20))
    for name, opcode in _rows(_FMA):
        table[f"{name}.s"] = Form("fma", _word(opcode, "0"))
        table[f"{name}.d"] = Form("fma", _word(opcode, "0", 1 << 25))
    return table


def _system() -> dict[str, Form]:
    table: dict[str, Form] = {"fence": Form("fence", 0x0F), "sfence.vma": Form("vma", 0x12000073)}
    for name, funct3 in _rows(_CSR):
        table[name] = Form("csr", _word("73", funct3))
    for kind, text in (("fixed", _FIXED), ("cache", _CACHE)):
        for name, match in _rows(text):
            table[name] = Form(kind, int(match, 16))
    return table


FORMS = {**_integer(), **_float(), **_system()}
