//! Owns a thread's place among the others: pinning it to one cpu, and how long it had to wait there.

use std::time::Duration;

/// Pins the calling thread; says so on standard error where that fails.
pub fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        eprintln!("note: a thread could not be pinned to cpu {cpu}: {error}");
    }
}

/// How long the calling thread was ready to run and another one ran in its place, so far. Zero where
/// the kernel does not say.
pub fn waited() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}
