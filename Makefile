# Everything is in tools/dev.py; this file only gives it the usual names.
PYTHON ?= python3
DEV = $(PYTHON) tools/dev.py

.PHONY: run test test-faults test-net test-kvm test-riscv test-programs setup lint format build sanitize bench fuzz-cpu clean help
run:       ; @$(DEV) run
test:      ; @$(DEV) test
test-faults: ; @$(DEV) test-faults
test-net:  ; @$(DEV) test-net
test-kvm:  ; @$(DEV) test-kvm $(ARCH)
setup:     ; @$(DEV) setup
build:     ; @$(DEV) build
test-riscv: ; @$(DEV) test-riscv $(DIR)
test-programs: ; @$(DEV) test-programs $(NAME)
lint:      ; @$(DEV) lint
format:    ; @$(DEV) format
sanitize:  ; @$(DEV) sanitize
bench:     ; @$(DEV) bench $(NAME)
fuzz-cpu:  ; @$(DEV) fuzz-cpu $(BLOCKS) $(SEED)
clean:     ; @$(DEV) clean
help:      ; @$(DEV) --help
