//! Owns pinning a thread to one cpu.

/// Pins the calling thread; says so on standard error where that fails.
pub fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        eprintln!("note: a thread could not be pinned to cpu {cpu}: {error}");
    }
}
