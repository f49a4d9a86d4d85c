// A machine: guest memory's page numbers, harts, and the wiring of doorbells and interrupts.
#include "rv64/hart.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

// Large arrays that are touched sparsely: zero pages until written.
static void *map_zero(uint64_t size) {
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                    -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

static void unmap(void *at, uint64_t size) {
    if (at != NULL) munmap(at, size);
}

// ---- Page numbers

bool crb_page_number(const crb_machine *machine, uint64_t gpa, uint64_t *page) {
    const crb_memory *memory = machine->memory;
    for (uint32_t i = 0; i < memory->n_regions; i++) {
        const crb_region *region = &memory->regions[i];
        if (gpa - region->gpa >= region->size) continue;
        *page = machine->first_page[i] + ((gpa - region->gpa) >> CRB_PAGE_SHIFT);
        return true;
    }
    return false;
}

uint32_t crb_page_region(const crb_machine *machine, uint64_t page) {
    uint32_t i = machine->memory->n_regions - 1;
    while (i > 0 && machine->first_page[i] > page)
        i--;
    return i;
}

uint64_t crb_page_of_host(const crb_machine *machine, const uint8_t *host) {
    uint32_t i = machine->memory->n_regions - 1;
    while (i > 0 && (uintptr_t)host - (uintptr_t)machine->memory->regions[i].overlay >=
                        machine->memory->regions[i].size)
        i--;
    return machine->first_page[i] +
           (((uintptr_t)host - (uintptr_t)machine->memory->regions[i].overlay) >> CRB_PAGE_SHIFT);
}

uint64_t crb_page_gpa(const crb_machine *machine, uint64_t page) {
    const uint32_t i = crb_page_region(machine, page);
    return machine->memory->regions[i].gpa + ((page - machine->first_page[i]) << CRB_PAGE_SHIFT);
}

// A memory without page state gets one here, so that writes through crb_translate in this process
// are seen. Regions with foreign state keep it.
#define OWN_STATE 0x656e696863616d00ull

static bool make_state(crb_machine *machine) {
    crb_memory *memory = machine->memory;
    if (memory->header != NULL) return true;
    machine->own_state = map_zero(machine->n_pages);
    if (machine->own_state == NULL) return false;
    for (uint32_t i = 0; i < memory->n_regions; i++)
        if (memory->regions[i].state == NULL)
            memory->regions[i].state = machine->own_state + machine->first_page[i];
    machine->own_header.magic = OWN_STATE;
    memory->header = &machine->own_header;
    return true;
}

static void drop_state(crb_machine *machine) {
    crb_memory *memory = machine->memory;
    if (machine->own_state == NULL) return;
    for (uint32_t i = 0; i < memory->n_regions; i++)
        if (memory->regions[i].state == machine->own_state + machine->first_page[i])
            memory->regions[i].state = NULL;
    memory->header = NULL;
    unmap(machine->own_state, machine->n_pages);
}

static bool number_pages(crb_machine *machine) {
    for (uint32_t i = 0; i < machine->memory->n_regions; i++) {
        machine->first_page[i] = machine->n_pages;
        machine->n_pages += machine->memory->regions[i].size >> CRB_PAGE_SHIFT;
    }
    machine->page_gen = map_zero(machine->n_pages * sizeof *machine->page_gen);
    machine->granules = map_zero(machine->n_pages * sizeof *machine->granules);
    return machine->page_gen != NULL && machine->granules != NULL && make_state(machine);
}

// ---- Harts

static void free_hart(crb_hart *hart) {
    if (hart == NULL) return;
    crb_blocks_free(hart);
    crb_jit_free(hart);
    crb_debug_free(hart);
    if (hart->wake_fd >= 0) close(hart->wake_fd);
    unmap(hart, sizeof *hart);
}

static crb_hart *new_hart(crb_machine *machine, uint32_t id) {
    crb_hart *hart = map_zero(sizeof *hart);
    if (hart == NULL) return NULL;
    hart->machine = machine;
    hart->id = id;
    hart->meet_at = UINT64_MAX;
    hart->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    hart->stimecmp = UINT64_MAX;
    // As OpenSBI leaves it: Linux's vDSO reads `time` in U-mode and never enables that itself.
    hart->scounteren = 7;
    hart->hsm = id == 0 ? 0 : 1;
    hart->status = CRB_STATUS_UXL;
    hart->privilege = machine->mode == CRB_MODE_USER ? 0 : 1;
    hart->scounteren = 7; // as firmware leaves it: a kernel's vDSO reads time in U-mode
    if (machine->mode == CRB_MODE_USER) hart->status |= CRB_STATUS_FS | CRB_STATUS_VS;
    hart->vtype = 1ull << 63;
    crb_spin_init(&hart->spin, CRB_WFI_SPIN_NS);
    hart->moved_count = &machine->memory->header->moved_count;
    if (hart->wake_fd < 0 || crb_blocks_init(hart) != 0) {
        free_hart(hart);
        return NULL;
    }
    if (!machine->deterministic) crb_jit_init(hart);
    crb_tlb_flush(hart);
    crb_status_changed(hart);
    return hart;
}

static bool valid(const crb_memory *memory, const crb_machine_config *config) {
    if (config->harts < 1 || config->harts > CRB_MAX_HARTS) return false;
    if (config->mode > CRB_MODE_USER) return false;
    if (config->mode == CRB_MODE_USER && config->harts != 1) return false;
    if (config->deterministic > 1 || (config->deterministic == 1 && config->harts != 1))
        return false;
    // A memory whose page state is another machine's would lose it with that machine.
    if (memory->header != NULL && memory->header->magic == OWN_STATE) return false;
    if (config->vlen != 0 && config->vlen != 128 && config->vlen != 256) return false;
    return memory->n_regions > 0 && config->timebase_hz > 0 && config->timebase_hz <= 1000000000;
}

static void drive_hart(void *owner, uint32_t context, bool level) {
    crb_hart *hart = ((crb_machine *)owner)->harts[context];
    if (!level) {
        __atomic_and_fetch(&hart->irq, ~CRB_SEIP, __ATOMIC_SEQ_CST);
        return;
    }
    const uint32_t before = __atomic_fetch_or(&hart->irq, CRB_SEIP, __ATOMIC_SEQ_CST);
    if ((before & CRB_SEIP) == 0) crb_attract(hart, CRB_ATTENTION_IRQ);
}

crb_machine *crb_machine_new(crb_memory *memory, const crb_machine_config *config) {
    if (!valid(memory, config)) {
        errno = EINVAL;
        return NULL;
    }
    if (crb_handlers == NULL) crb_interpret(NULL);
    crb_machine *machine = calloc(1, sizeof *machine);
    if (machine == NULL) return NULL;
    machine->memory = memory;
    machine->mode = config->mode;
    machine->timebase_hz = config->timebase_hz;
    machine->vlenb = config->vlen == 0 ? 16 : config->vlen / 8;
    machine->plic_gpa = config->plic_gpa;
    machine->plic = (crb_plic){.owner = machine, .drive = drive_hart};
    machine->deterministic = config->deterministic == 1;
    machine->time_offset_ns = machine->deterministic ? 0 : crb_now_ns();
    for (uint32_t i = 0; i < memory->n_regions; i++)
        machine->copy_on_read |= memory->regions[i].base != NULL && config->harts > 1;
    pthread_mutex_init(&machine->lock, NULL);
    machine->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    bool ok = machine->epoll_fd >= 0 && number_pages(machine);
    for (uint32_t id = 0; ok && id < config->harts; id++) {
        machine->harts[id] = new_hart(machine, id);
        ok = machine->harts[id] != NULL;
        machine->n_harts += ok;
        machine->plic.n_contexts = machine->n_harts;
    }
    if (ok) return machine;
    crb_machine_free(machine);
    errno = ENOMEM;
    return NULL;
}

void crb_machine_free(crb_machine *machine) {
    if (machine == NULL) return;
    for (uint32_t id = 0; id < machine->n_harts; id++)
        free_hart(machine->harts[id]);
    drop_state(machine);
    unmap(machine->page_gen, machine->n_pages * sizeof *machine->page_gen);
    unmap(machine->granules, machine->n_pages * sizeof *machine->granules);
    if (machine->epoll_fd >= 0) close(machine->epoll_fd);
    pthread_mutex_destroy(&machine->lock);
    free(machine);
}

// ---- Doorbells

int crb_machine_add_doorbell(crb_machine *machine, uint64_t gpa, uint32_t size, int64_t match,
                             int eventfd) {
    if (eventfd < 0 || (size != 1 && size != 2 && size != 4 && size != 8)) return -EINVAL;
    pthread_mutex_lock(&machine->lock);
    const bool full = machine->n_doorbells == CRB_MAX_DOORBELLS;
    if (!full)
        machine->doorbells[machine->n_doorbells++] =
            (crb_doorbell){.gpa = gpa, .match = match, .size = size, .fd = eventfd};
    pthread_mutex_unlock(&machine->lock);
    return full ? -ENOSPC : 0;
}

int crb_machine_remove_doorbell(crb_machine *machine, uint64_t gpa, int64_t match) {
    int status = -ENOENT;
    pthread_mutex_lock(&machine->lock);
    for (uint32_t i = 0; i < machine->n_doorbells && status != 0; i++) {
        if (machine->doorbells[i].gpa != gpa || machine->doorbells[i].match != match) continue;
        machine->doorbells[i] = machine->doorbells[--machine->n_doorbells];
        status = 0;
    }
    pthread_mutex_unlock(&machine->lock);
    return status;
}

// ---- Interrupt sources

static crb_virtio_irq *find_virtio(crb_machine *machine, uint32_t source) {
    for (uint32_t i = 0; i < machine->n_virtio; i++)
        if (machine->virtio[i].source == source) return &machine->virtio[i];
    return NULL;
}

int crb_machine_add_virtio_irq(crb_machine *machine, uint32_t source, uint64_t status_gpa,
                               uint64_t ack_gpa) {
    if (source == 0 || source >= CRB_PLIC_SOURCES) return -EINVAL;
    pthread_mutex_lock(&machine->lock);
    const bool taken = find_virtio(machine, source) != NULL;
    if (!taken)
        machine->virtio[machine->n_virtio++] =
            (crb_virtio_irq){.source = source, .status_gpa = status_gpa, .ack_gpa = ack_gpa};
    pthread_mutex_unlock(&machine->lock);
    return taken ? -EEXIST : 0;
}

int crb_machine_add_call_fd(crb_machine *machine, uint32_t source, int call_fd) {
    int status = 0;
    pthread_mutex_lock(&machine->lock);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = call_fd};
    if (find_virtio(machine, source) == NULL) {
        status = -ENOENT;
    } else if (machine->n_call_fds == CRB_MAX_CALL_FDS) {
        status = -ENOSPC;
    } else if (epoll_ctl(machine->epoll_fd, EPOLL_CTL_ADD, call_fd, &event) != 0) {
        status = -errno;
    } else {
        machine->call_fds[machine->n_call_fds++] = (crb_call_fd){.source = source, .fd = call_fd};
    }
    pthread_mutex_unlock(&machine->lock);
    return status;
}

int crb_machine_remove_call_fd(crb_machine *machine, uint32_t source, int call_fd) {
    int status = -ENOENT;
    pthread_mutex_lock(&machine->lock);
    for (uint32_t i = 0; i < machine->n_call_fds && status != 0; i++) {
        if (machine->call_fds[i].source != source || machine->call_fds[i].fd != call_fd) continue;
        epoll_ctl(machine->epoll_fd, EPOLL_CTL_DEL, call_fd, NULL);
        machine->call_fds[i] = machine->call_fds[--machine->n_call_fds];
        status = 0;
    }
    pthread_mutex_unlock(&machine->lock);
    return status;
}

static void raise_locked(crb_machine *machine, uint32_t source, uint32_t bits) {
    crb_virtio_irq *irq = find_virtio(machine, source);
    if (irq == NULL) return;
    irq->status |= bits;
    crb_plic_set_level(&machine->plic, source, irq->status != 0);
}

void crb_machine_virtio_raise(crb_machine *machine, uint32_t source, uint32_t bits) {
    pthread_mutex_lock(&machine->lock);
    raise_locked(machine, source, bits);
    pthread_mutex_unlock(&machine->lock);
}

void crb_machine_virtio_acknowledge(crb_machine *machine, uint32_t source, uint32_t bits) {
    pthread_mutex_lock(&machine->lock);
    crb_virtio_irq *irq = find_virtio(machine, source);
    if (irq != NULL) {
        irq->status &= ~bits;
        crb_plic_set_level(&machine->plic, source, irq->status != 0);
    }
    pthread_mutex_unlock(&machine->lock);
}

uint32_t crb_machine_virtio_status(crb_machine *machine, uint32_t source) {
    pthread_mutex_lock(&machine->lock);
    const crb_virtio_irq *irq = find_virtio(machine, source);
    const uint32_t status = irq != NULL ? irq->status : 0;
    pthread_mutex_unlock(&machine->lock);
    return status;
}

void crb_machine_set_line(crb_machine *machine, uint32_t source, bool level) {
    pthread_mutex_lock(&machine->lock);
    crb_plic_set_level(&machine->plic, source, level);
    pthread_mutex_unlock(&machine->lock);
}

// Reads happen under the lock, so two harts never read one eventfd's single count twice.
void crb_poll_calls(crb_machine *machine) {
    struct epoll_event events[16];
    if (__atomic_load_n(&machine->n_call_fds, __ATOMIC_RELAXED) == 0) return;
    const int ready = epoll_wait(machine->epoll_fd, events, 16, 0);
    if (ready <= 0) return;
    pthread_mutex_lock(&machine->lock);
    for (uint32_t i = 0; i < machine->n_call_fds; i++) {
        for (int j = 0; j < ready; j++) {
            if (events[j].data.fd != machine->call_fds[i].fd) continue;
            struct pollfd pollfd = {.fd = machine->call_fds[i].fd, .events = POLLIN};
            uint64_t count;
            if (poll(&pollfd, 1, 0) == 1 && read(pollfd.fd, &count, sizeof count) == sizeof count)
                raise_locked(machine, machine->call_fds[i].source, 1);
        }
    }
    pthread_mutex_unlock(&machine->lock);
}

// ---- Captures

void crb_machine_settle(crb_machine *machine) {
    crb_poll_calls(machine);
    for (uint32_t id = 0; id < machine->n_harts; id++)
        crb_tlb_flush_writes(machine->harts[id]);
}

// ---- Snapshots of the PLIC

int crb_machine_get_plic(crb_machine *machine, uint8_t *state) {
    pthread_mutex_lock(&machine->lock);
    crb_plic_get_state(&machine->plic, state);
    pthread_mutex_unlock(&machine->lock);
    return 0;
}

int crb_machine_set_plic(crb_machine *machine, const uint8_t *state) {
    pthread_mutex_lock(&machine->lock);
    const int status = crb_plic_set_state(&machine->plic, state);
    pthread_mutex_unlock(&machine->lock);
    return status;
}

// ---- Time

uint64_t crb_machine_ns(const crb_machine *machine) {
    const crb_hart *hart = machine->harts[0];
    return machine->deterministic ? hart->retired_base - (uint64_t)hart->budget : crb_now_ns();
}

uint64_t crb_time(crb_machine *machine) {
    const uint64_t ns =
        crb_machine_ns(machine) - __atomic_load_n(&machine->time_offset_ns, __ATOMIC_RELAXED);
    if (1000000000 % machine->timebase_hz == 0) return ns / (1000000000 / machine->timebase_hz);
    return (uint64_t)((unsigned __int128)ns * machine->timebase_hz / 1000000000);
}

uint64_t crb_machine_get_time(crb_machine *machine) {
    return crb_time(machine);
}

void crb_machine_set_time(crb_machine *machine, uint64_t ticks) {
    const uint64_t ns = (uint64_t)((unsigned __int128)ticks * 1000000000 / machine->timebase_hz);
    __atomic_store_n(&machine->time_offset_ns, crb_machine_ns(machine) - ns, __ATOMIC_RELAXED);
    for (uint32_t id = 0; id < machine->n_harts; id++)
        crb_attract(machine->harts[id], CRB_ATTENTION_IRQ);
}
