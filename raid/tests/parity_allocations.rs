//! Making parity and restoring what is lost take nothing from the heap: counted.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use corebay_raid::kernels::{self, Codec, Level};

thread_local!(static TAKEN: Cell<u64> = const { Cell::new(0) });

/// The system's allocator, counting what each thread takes from it.
struct Counting;

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TAKEN.with(|taken| taken.set(taken.get() + 1));
        // SAFETY: by the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: by the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn a_codec_and_a_plan_allocate_only_while_they_are_made() {
    let (a, b, c, d) = ([1_u8; 777], [2_u8; 777], [3_u8; 777], [4_u8; 777]);
    let (mut p, mut q) = ([0_u8; 777], [0_u8; 777]);
    let before_codecs = TAKEN.get();
    for codec in [Codec::new(4, 2).unwrap(), Codec::pq(4).unwrap()] {
        assert!(TAKEN.get() > before_codecs, "the counter counts");
        for level in Level::available() {
            let codec = codec.clone().with_level(level);
            let plan = codec.plan(&[1, 3]).unwrap();
            let before = TAKEN.get();
            codec.encode(&[&a, &b, &c, &d], &mut [&mut p, &mut q]);
            codec.update(2, &a, &mut [&mut p, &mut q]);
            let (mut second, mut fourth) = ([0; 777], [0; 777]);
            plan.reconstruct(&[&a, &c, &p, &q], &mut [&mut second, &mut fourth]);
            plan.reconstruct_one(1, &[&a, &c, &p, &q], &mut fourth);
            assert_eq!(TAKEN.get(), before, "{level}");
        }
    }
    let before = TAKEN.get();
    kernels::xor(&[&a, &b, &c], &mut p);
    kernels::xor_into(&[&d], &mut p);
    kernels::pq(&[&a, &b], &mut p, &mut q);
    assert_eq!(TAKEN.get(), before);
}
