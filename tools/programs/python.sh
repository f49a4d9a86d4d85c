# image: deb:trixie/python3.13,libpython3.13-testsuite,gcc,libc6-dev,binutils
# memory: 2g
# limit: 6000
# expect: ^Total test files: (run=(\d\d+)/\2\b|.* rerun=\d)
# expect: ^Result: (FAILURE then )?SUCCESS$
# refuse: ^Result: (?!(FAILURE then )?SUCCESS$)
# Not run: IOError of epoll for a regular file, in test_selectors. In a guest regular files are FUSE's, and those
# can be polled (Linux, fs/fuse/file.c: fuse_file_poll), as with any virtio-fs. And two tests that give a queue's
# thread 0.1 s for six numbers, which a busy host does not: they say something of the host, nothing of the guest.
# A file that fails is run once more, as CPython's own CI does: many tests give clocks a millisecond.
export LC_ALL=C.UTF-8
python3.13 -m test -j2 --rerun --timeout 1800 -i 'test.test_selectors.*.test_register_file' \
  -i 'test.test_multiprocessing_*.test_processes.WithProcessesTestQueue.test_put' \
  test_math test_cmath test_float test_int test_long test_strtod test_struct test_array test_decimal \
  test_fractions test_statistics test_random test_hashlib test_zlib test_bz2 test_lzma test_json test_re test_str \
  test_bytes test_list test_dict test_set test_sort test_complex test_bool test_memoryview test_ctypes \
  test_threading test_thread test_queue test_signal test_mmap test_os test_posix test_shutil test_tempfile \
  test_subprocess test_socket test_select test_selectors test_asyncio test_concurrent_futures \
  test_multiprocessing_fork test_multiprocessing_spawn test_gc test_weakref test_io test_fileio test_file \
  test_pathlib test_stat test_glob test_fcntl test_pty test_tty test_time test_datetime test_zoneinfo test_sqlite3 \
  test_dbm test_pickle test_marshal test_compile test_ast test_grammar test_generators test_coroutines test_sys \
  test_faulthandler test_resource test_epoll test_poll test_eintr test_fork1 test_wait3 test_wait4 test_largefile \
  test_tarfile test_zipfile test_gzip > log 2>&1
status=$?
cat log
sed -n 's/^Total test/SUM Total test/p' log
exit $status
