"""What the soft CPU takes for an instruction: every halfword, and 32-bit words near and far from legal."""

from __future__ import annotations

import random
import struct

from framework.rv64_asm import encode
from framework.rv64_asm_c import every_word, expand
from framework.rv64_more import expand_more, legal_more
from framework.rv64_opcodes import FORMS
from framework.rv64_user import BASE, CAUSE_ILLEGAL, ECALL, Outcome, UserHart
from framework.rv64_values import float_register

# Memory is zero where nothing else is, an illegal instruction: wherever a jump goes, it ends there.
HALF, FULL, DATA, SIZE = 0x10_0000, 0x20_0000, 0x30_0000, 0x40_0000
STRIDE = 8
KNOWN = every_word()
RELATIVE = ("c.j", "c.beqz", "c.bnez")
FAR = 0x1000  # a stride that no compressed jump can cross twice

MASKS = {
    "r": 0xFE00707F, "unary": 0xFFF0707F, "i": 0x707F, "load": 0x707F, "store": 0x707F,
    "branch": 0x707F, "u": 0x7F, "j": 0x7F, "lr": 0xF9F0707F, "amo": 0xF800707F, "fp2": 0xFE00007F,
    "fp1": 0xFFF0007F, "fma": 0x0600007F, "fence": 0x707F, "shift": 0xFC00707F,
}  # fmt: skip


def registers(seeded: random.Random) -> tuple[dict[int, int], dict[int, int]]:
    """x1..x31 spread over the data, f0..f31 anything."""
    x = {number: BASE + DATA + 64 * number for number in range(1, 32)}
    return x, {number: float_register(seeded) for number in range(32)}


def same_effect(half: Outcome, full: Outcome, offset: int) -> bool:
    """`offset`: how far the longer snippet lies behind. Its link and where it ends are 2 later."""
    longer = offset + 2
    same_x = all(
        b == a or (number == 1 and b - a == longer)
        for number, (a, b) in enumerate(zip(half.x, full.x, strict=True))
    )
    moved = full.pc - half.pc
    return half.cause == full.cause and same_x and half.f == full.f and moved in (0, offset, longer)


def place(hart: UserHart, word: int, half: int, full: int) -> None:
    """A halfword, and what it stands for, each with an ecall behind it."""
    hart.ram[half : half + 6] = struct.pack("<H", word) + ECALL
    whole = stands_for(word)
    if whole is not None:
        hart.ram[full : full + 8] = struct.pack("<I", whole) + ECALL


def stands_for(word: int) -> int | None:
    """The 32-bit instruction, None when the halfword is illegal."""
    if word not in KNOWN:
        return expand_more(word)
    name, operands = expand(*KNOWN[word])
    return encode(name, *operands)


def test_every_halfword() -> None:
    """A halfword is illegal, or does what the 32-bit instruction does that it stands for."""
    hart = UserHart(SIZE)
    words = [
        word for word in range(1 << 16)
        if word & 3 != 3 and KNOWN.get(word, ("",))[0] not in RELATIVE
    ]  # fmt: skip
    for at, word in enumerate(words):
        place(hart, word, HALF + at * STRIDE, FULL + at * STRIDE)
    x, f = registers(random.Random(1))
    before = hart.ram[DATA : DATA + 4096]
    for at, word in enumerate(words):
        half = hart.run(BASE + HALF + at * STRIDE, x=x, f=f)
        if stands_for(word) is None:
            assert (half.cause, half.pc) == (CAUSE_ILLEGAL, BASE + HALF + at * STRIDE), hex(word)
            continue
        stored = hart.ram[DATA : DATA + 4096]
        hart.ram[DATA : DATA + 4096] = before
        full = hart.run(BASE + FULL + at * STRIDE, x=x, f=f)
        assert same_effect(half, full, FULL - HALF), f"{word:#06x} {half} {full}"
        assert stored == hart.ram[DATA : DATA + 4096], f"{word:#06x}"
        hart.ram[DATA : DATA + 4096] = before


def test_every_relative_jump() -> None:
    """Taken and not; but for the jump to itself, which never ends."""
    words = [w for w, (name, operands) in KNOWN.items() if name in RELATIVE and operands[-1] != 0]
    assert len(words) == 2047 + 2 * 8 * 255
    hart = UserHart(len(words) * FAR + FAR)
    for at, word in enumerate(words):
        jump = at * FAR + FAR // 2
        hart.ram[jump : jump + 2] = struct.pack("<H", word)
    for value in (0, 1):
        x = dict.fromkeys(range(1, 32), value)
        taken = {"c.j": True, "c.beqz": value == 0, "c.bnez": value != 0}
        for at, word in enumerate(words):
            name, operands = KNOWN[word]
            address = BASE + at * FAR + FAR // 2
            outcome = hart.run(address, x=x)
            assert outcome.pc == address + (operands[-1] if taken[name] else 2), KNOWN[word]


def legal(word: int) -> bool:
    """Whether user mode executes a 32-bit word, by the opcode tables."""
    for name, form in FORMS.items():
        if form.kind not in MASKS:
            continue
        mask = MASKS[form.kind]
        if form.kind == "shift" and form.match & 0x7F == 0x1B and name != "slli.uw":
            mask |= 1 << 25
        if word & mask == form.match & mask:
            rounding = form.kind in ("fp1", "fp2", "fma")
            return not (rounding and word >> 12 & 7 in (5, 6))
    fixed = word in (encode("ecall"), encode("ebreak"))
    return fixed or word & 0x707F == encode("fence.i") & 0x707F or legal_more(word)


def near_legal(seeded: random.Random) -> int:
    """A legal instruction's fixed bits, random others, sometimes one fixed bit wrong."""
    form = seeded.choice(list(FORMS.values()))
    mask = MASKS.get(form.kind, 0xFFFFFFFF)
    word = form.match | seeded.getrandbits(32) & ~mask
    return word ^ (1 << seeded.randrange(2, 32) if seeded.random() < 0.5 else 0)


def test_words_are_legal_as_the_tables_say() -> None:
    """System instructions (CSRs, cache blocks) and vectors are left to tests of their own."""
    seeded = random.Random(2)
    hart = UserHart(SIZE)
    x, f = registers(seeded)
    words = []
    while len(words) < 12_000:
        word = near_legal(seeded) if seeded.random() < 0.8 else seeded.getrandbits(32) | 3
        csr = word & 0x7F == 0x73 and word >> 12 & 3 != 0
        cache = word & 0x707F == 0x200F
        jump = word & 0x7F in (0x63, 0x67, 0x6F) and legal(word)  # might never come back
        vector = word & 0x7F == 0x57 or (word & 0x5F == 0x07 and word >> 12 & 7 in (0, 5, 6, 7))
        if not csr and not cache and not jump and not vector:
            words.append(word)
    for at, word in enumerate(words):
        code = FULL + at * STRIDE
        hart.ram[code : code + 4] = struct.pack("<I", word)
    data = slice(DATA - 4096, DATA + 8192)  # what the registers and any offset reach
    before = hart.ram[data]
    for at, word in enumerate(words):
        address = BASE + FULL + at * STRIDE
        outcome = hart.run(address, x=x, f=f)
        illegal = outcome.cause == CAUSE_ILLEGAL and outcome.pc == address
        assert illegal != legal(word), f"{word:#010x} {outcome}"
        if word & 0x5F in (0x03, 0x07, 0x0F, 0x23, 0x27, 0x2F):
            hart.ram[data] = before


def test_supervisor_instructions_are_illegal_in_user_mode() -> None:
    hart = UserHart()
    for name in ("sret", "wfi"):
        assert hart.run(hart.install(encode(name))).cause == CAUSE_ILLEGAL
    assert hart.run(hart.install(encode("sfence.vma", 0, 0))).cause == CAUSE_ILLEGAL
    for csr in ("sstatus", "satp", "sepc", "stimecmp"):
        assert hart.run(hart.install(encode("csrrs", 1, csr, 0))).cause == CAUSE_ILLEGAL


def test_the_illegal_word_is_in_stval() -> None:
    hart = UserHart()
    for word in (0xFFFFFFFF, 0x0000707F, 0x12345677):
        outcome = hart.run(hart.install(word))
        assert (outcome.cause, outcome.tval) == (CAUSE_ILLEGAL, word)
    compressed = hart.install(0x0000, halfwords=True)
    assert hart.run(compressed).tval == 0
