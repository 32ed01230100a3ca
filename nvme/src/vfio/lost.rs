//! Owns what an access to registers meets that the kernel has taken away: memory of ones, as an
//! unplugged device reads, instead of the process's end by SIGBUS.
//!
//! The kernel may take a mapped BAR away between any two instructions: when the function is reset, when
//! its memory is switched off by somebody else, when its slot loses power. An access then raises SIGBUS.
//!
//! Invariants:
//! - Only faults within a [`Mapped`] range are mended; all others take the way that they had before.
//! - The handler allocates nothing and takes no lock: it reads [`RANGES`], and maps.

use std::{
    fs::File,
    mem::MaybeUninit,
    os::unix::fs::FileExt,
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::{
    fs::MemfdFlags,
    mm::{MapFlags, ProtFlags},
};

/// Ranges that can be mapped at once: one for each open device.
const RANGES_MAX: usize = 1024;
/// The longest range. Controllers have 16 KiB to some MiB of registers; what goes beyond is not mapped.
pub(super) const RANGE_BYTES_MAX: u32 = 8 << 20;

#[derive(Debug)]
struct Range {
    /// 0 while the entry is free, 1 while it changes hands.
    start: AtomicUsize,
    bytes: AtomicUsize,
}

const FREE: usize = 0;
const TAKEN: usize = 1;

static RANGES: [Range; RANGES_MAX] = [const {
    Range {
        start: AtomicUsize::new(FREE),
        bytes: AtomicUsize::new(0),
    }
}; RANGES_MAX];

/// What the handler needs, made before it is there.
struct Installed {
    /// [`RANGE_BYTES_MAX`] bytes of ones.
    ones: File,
    /// What SIGBUS did before.
    before: libc::sigaction,
}

static INSTALLED: OnceLock<Option<Installed>> = OnceLock::new();

/// Registers in this process's memory, for as long as this lives.
#[derive(Debug)]
pub(super) struct Mapped(&'static Range);

impl Mapped {
    /// Watches over the range; `None` where there are too many, it is too long, or the handler cannot be
    /// installed.
    pub(super) fn new(start: *mut u8, bytes: usize) -> Option<Self> {
        installed()?;
        if bytes > RANGE_BYTES_MAX as usize {
            return None;
        }
        let is_free = |range: &&Range| {
            let (acquire, relaxed) = (Ordering::Acquire, Ordering::Relaxed);
            let taken = range.start.compare_exchange(FREE, TAKEN, acquire, relaxed);
            taken.is_ok()
        };
        let range = RANGES.iter().find(is_free)?;
        range.bytes.store(bytes, Ordering::Relaxed);
        range.start.store(start.addr(), Ordering::Release);
        Some(Self(range))
    }

    /// Puts memory of ones in the registers' place, at once for all who access them. Whether it could.
    pub(super) fn give_up(&self) -> bool {
        replace(self.0)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.0.start.store(FREE, Ordering::Release);
    }
}

fn installed() -> Option<&'static Installed> {
    INSTALLED.get_or_init(install).as_ref()
}

fn install() -> Option<Installed> {
    let ones = rustix::fs::memfd_create("corebay-ones", MemfdFlags::CLOEXEC).ok()?;
    let ones = File::from(ones);
    let page = [0xFF; 64 << 10];
    for at in (0..u64::from(RANGE_BYTES_MAX)).step_by(page.len()) {
        ones.write_all_at(&page, at).ok()?;
    }
    let mut before = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null action asks only; the structure has room for the answer.
    let asked = unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), before.as_mut_ptr()) };
    if asked != 0 {
        return None;
    }
    // SAFETY: all of it was zero, which is a valid action, or was written by the call.
    let before = unsafe { before.assume_init() };
    let mut action = before;
    let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the form that SA_SIGINFO asks for, and is safe whenever it comes: until
    // `INSTALLED` is set no range is watched.
    let set = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
    (set == 0).then_some(Installed { ones, before })
}

extern "C" fn on_bus_error(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid structure to a handler with SA_SIGINFO, with the address for a
    // fault of this kind.
    let at = unsafe { (*info).si_addr() }.addr();
    let holds = |range: &&Range| {
        let start = range.start.load(Ordering::Acquire);
        start > TAKEN && (start..start + range.bytes.load(Ordering::Relaxed)).contains(&at)
    };
    if RANGES.iter().find(holds).is_some_and(replace) {
        return;
    }
    // Not ours: the instruction faults again, and meets what was there before.
    let Some(Some(installed)) = INSTALLED.get() else {
        // SAFETY: ends the process, as the fault would have.
        unsafe { libc::abort() }
    };
    // SAFETY: the action is the one that the kernel gave.
    unsafe { libc::sigaction(libc::SIGBUS, &raw const installed.before, ptr::null_mut()) };
}

/// Maps ones over the range: one call, so that nobody meets anything else in between.
fn replace(range: &Range) -> bool {
    let Some(Some(installed)) = INSTALLED.get() else {
        return false;
    };
    // SAFETY: the pages replaced are those of one mapping of registers, which its owner unmaps only after
    // the range is free again; they are accessed by volatile reads and writes alone.
    let mapped = unsafe {
        rustix::mm::mmap(
            ptr::with_exposed_provenance_mut(range.start.load(Ordering::Acquire)),
            range.bytes.load(Ordering::Relaxed),
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::FIXED,
            &installed.ones,
            0,
        )
    };
    mapped.is_ok()
}

#[cfg(test)]
mod tests {
    use memmap2::{MmapOptions, MmapRaw};

    use super::*;

    /// A mapping whose pages are gone: beyond the end of its file.
    fn taken_away() -> MmapRaw {
        let file = rustix::fs::memfd_create("registers", MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(file);
        file.set_len(8192).unwrap();
        let map = MmapOptions::new().len(8192).map_raw(&file).unwrap();
        file.set_len(0).unwrap();
        map
    }

    #[test]
    fn registers_that_are_taken_away_read_as_ones() {
        for _ in 0..3 {
            let map = taken_away();
            let _mapped = Mapped::new(map.as_mut_ptr(), 8192).expect("watched");
            let at = |offset| map.as_mut_ptr().wrapping_add(offset).cast::<u32>();
            // SAFETY: within the mapping, aligned.
            let read = |offset| unsafe { at(offset).read_volatile() };
            assert_eq!(read(0x1C), u32::MAX);
            // SAFETY: as for reads.
            unsafe { at(0x1000).write_volatile(7) };
            assert_eq!(read(0x1004), u32::MAX);
        }
    }

    #[test]
    fn two_cores_that_fault_at_once_go_on() {
        let map = taken_away();
        let _mapped = Mapped::new(map.as_mut_ptr(), 8192).expect("watched");
        let start = map.as_mut_ptr().expose_provenance();
        let read = move || {
            let at = ptr::with_exposed_provenance::<u32>(start + 0x14);
            // SAFETY: within the mapping, which outlives the threads; aligned.
            unsafe { at.read_volatile() }
        };
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..4).map(|_| scope.spawn(read)).collect();
            for reader in readers {
                assert_eq!(reader.join().unwrap(), u32::MAX);
            }
        });
    }

    #[test]
    fn other_memory_is_not_ones() {
        let map = taken_away();
        let start = map.as_mut_ptr();
        drop(Mapped::new(start, 8192).expect("watched"));
        let of_others = taken_away();
        let _mapped = Mapped::new(of_others.as_mut_ptr(), 4096).expect("watched");
        let falls = |at: *mut u8| {
            // SAFETY: the child only reads, and ends without running anything of this process.
            unsafe {
                let child = libc::fork();
                if child == 0 {
                    at.read_volatile();
                    libc::_exit(0);
                }
                let mut status = 0;
                libc::waitpid(child, &raw mut status, 0);
                libc::WIFSIGNALED(status)
            }
        };
        assert!(falls(start), "no longer watched");
        assert!(
            falls(of_others.as_mut_ptr().wrapping_add(4096)),
            "beyond the range"
        );
        assert!(!falls(of_others.as_mut_ptr()));
    }
}
