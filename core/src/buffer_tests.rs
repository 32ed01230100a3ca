//! The buddy allocator against a slow model, and the rules of windows and pins.

use super::*;
use crate::{arena::Arena, executor::Executor, rng::Rng};

fn pool(bytes: usize) -> BufferPool {
    let mut arena = Arena::lazy(bytes).unwrap();
    BufferPool::new(arena.take(bytes).unwrap(), 16)
}

#[test]
fn windows_share_a_block_and_the_last_one_frees_it() {
    let pool = pool(BLOCK_BYTES_MAX);
    let mut whole = pool.try_allocate(8192).unwrap();
    whole.bytes_mut().copy_from_slice(&[7; 8192]);
    let part = whole.slice(4096..4100);
    drop(whole);
    assert_eq!(&*part.bytes(), [7; 4]);
    assert_eq!(pool.free_bytes(), pool.total_bytes() - 8192);
    drop(part);
    assert_eq!(pool.free_bytes(), pool.total_bytes());
}

#[test]
fn a_pinned_block_outlives_its_buffer() {
    let pool = pool(BLOCK_BYTES_MAX);
    let pin = pool.try_allocate(4096).unwrap().pin(Direction::FromDevice);
    assert_eq!(pool.free_bytes(), pool.total_bytes() - 4096);
    drop(pin);
    assert_eq!(pool.free_bytes(), pool.total_bytes());
}

#[test]
fn a_window_is_used_where_its_own_bytes_are() {
    let buffer = pool(BLOCK_BYTES_MAX).try_allocate(8192).unwrap();
    let pin = buffer.slice(0..4096).pin(Direction::FromDevice);
    assert!(buffer.is_used() && buffer.slice(4095..4097).is_used());
    assert!(!buffer.slice(4096..8192).is_used() && buffer.is_shared());
    drop(pin);
    assert!(!buffer.is_used() && !buffer.is_shared());
}

#[test]
#[should_panic(expected = "the block is being written")]
fn nobody_looks_at_what_a_device_writes() {
    let buffer = pool(BLOCK_BYTES_MAX).try_allocate(4096).unwrap();
    let _pin = buffer.pin(Direction::FromDevice);
    let _ = buffer.bytes();
}

#[test]
#[should_panic(expected = "the block is in use")]
fn nobody_writes_what_a_device_reads() {
    let mut buffer = pool(BLOCK_BYTES_MAX).try_allocate(4096).unwrap();
    let _pin = buffer.pin(Direction::ToDevice);
    let _ = buffer.bytes_mut();
}

#[test]
fn windows_that_do_not_overlap_are_independent() {
    let whole = pool(BLOCK_BYTES_MAX).try_allocate(16384).unwrap();
    let mut parts: Vec<Buffer> = (0..4)
        .map(|part| whole.slice(part * 512..(part + 1) * 512))
        .collect();
    let written = parts[0].pin(Direction::FromDevice);
    let read = parts[1].pin(Direction::ToDevice);
    parts[2].bytes_mut().fill(7);
    assert_eq!(&parts[2].bytes()[..], [7; 512]);
    let look = parts[1].bytes();
    let other = parts[3].pin(Direction::FromDevice);
    drop((look, read, written));
    parts[0].bytes_mut().fill(1);
    drop(other);
    parts[3].bytes_mut().fill(1);
    assert_eq!(whole.bytes()[..512], [1; 512]);
}

#[test]
#[should_panic(expected = "the block is being written")]
fn one_shared_byte_is_enough_to_collide() {
    let whole = pool(BLOCK_BYTES_MAX).try_allocate(4096).unwrap();
    let _first = whole.slice(0..1000).bytes().len();
    let _pin = whole.slice(512..1024).pin(Direction::FromDevice);
    let _ = whole.slice(1023..1024).bytes();
}

#[test]
fn uses_agree_with_a_slow_model() {
    let (whole, mut rng) = (
        pool(BLOCK_BYTES_MAX).try_allocate(4096).unwrap(),
        Rng::from_seed(3),
    );
    let mut held: Vec<(std::ops::Range<usize>, bool, DevicePin)> = Vec::new();
    for _ in 0..3000 {
        let start = rng.below(8) as usize;
        let range = start * 512..(start + 1 + rng.below(8 - start as u64) as usize) * 512;
        if rng.once_in(2) && !held.is_empty() {
            held.swap_remove(rng.below(held.len() as u64) as usize);
        } else if held.len() < 5 {
            let writes = rng.once_in(2);
            let direction = match writes {
                true => Direction::FromDevice,
                false => Direction::ToDevice,
            };
            held.push((
                range.clone(),
                writes,
                whole.slice(range.clone()).pin(direction),
            ));
        }
        let overlaps =
            |other: &std::ops::Range<usize>| other.start < range.end && range.start < other.end;
        let mut window = whole.slice(range.clone());
        let may_look = !held
            .iter()
            .any(|(other, writes, _)| *writes && overlaps(other));
        let may_change = !held.iter().any(|(other, ..)| overlaps(other));
        let attempt = |action: &mut dyn FnMut()| {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(action)).is_ok()
        };
        assert_eq!(attempt(&mut || drop(window.bytes())), may_look);
        assert_eq!(attempt(&mut || drop(window.bytes_mut())), may_change);
    }
}

#[test]
fn a_frozen_window_is_looked_at_and_frees_its_block() {
    let pool = pool(BLOCK_BYTES_MAX);
    let mut buffer = pool.try_allocate(4096).unwrap();
    buffer.bytes_mut().fill(3);
    let other = buffer.clone();
    let frozen = buffer.freeze();
    assert_eq!(
        (&*frozen, &*other.bytes()),
        (&[3; 4096][..], &[3; 4096][..])
    );
    drop(other);
    assert_eq!(pool.free_bytes(), pool.total_bytes() - 4096);
    drop(frozen);
    assert_eq!(pool.free_bytes(), pool.total_bytes());
}

#[test]
#[should_panic(expected = "the block is in use")]
fn nobody_writes_what_is_frozen() {
    let mut buffer = pool(BLOCK_BYTES_MAX).try_allocate(4096).unwrap();
    let _frozen = buffer.clone().freeze();
    let _ = buffer.bytes_mut();
}

#[test]
fn small_blocks_that_are_kept_whole_merge_for_a_large_one() {
    let pool = pool(BLOCK_BYTES_MAX);
    let small: Vec<_> = (0..pool.total_bytes() / 4096)
        .map(|_| pool.try_allocate(4096).unwrap())
        .collect();
    assert!(pool.try_allocate(1).is_none());
    let pages: Vec<u32> = small.iter().map(|buffer| buffer.page).collect();
    drop(small);
    assert_eq!(pool.free_bytes(), pool.total_bytes());
    let again = pool.try_allocate(4096).unwrap();
    assert_eq!(again.page, pages[pages.len() - 1], "not the one freed last");
    drop(again);
    assert!(pool.try_allocate(BLOCK_BYTES_MAX).is_some());
}

#[test]
fn a_large_request_is_not_overtaken() {
    let pool = pool(BLOCK_BYTES_MAX);
    let executor = Executor::new(4);
    let small = pool.try_allocate(4096).unwrap();
    let (waiting, got) = (pool.clone(), Rc::new(Cell::new(0)));
    let into = got.clone();
    executor
        .spawn(async move { into.set(waiting.allocate(BLOCK_BYTES_MAX).await.len()) })
        .ok()
        .unwrap();
    executor.run_ready();
    assert!(pool.try_allocate(4096).is_none(), "overtook the waiter");
    drop(small);
    executor.run_ready();
    assert_eq!(got.get(), BLOCK_BYTES_MAX);
}

#[test]
fn blocks_never_overlap_and_all_come_back() {
    for seed in 0..20 {
        let mut rng = Rng::from_seed(seed);
        // No power of two, so that the region ends in smaller blocks.
        let pool = pool(2 * BLOCK_BYTES_MAX + 5 * BLOCK_BYTES_MIN);
        let mut held: Vec<Buffer> = Vec::new();
        for _ in 0..2000 {
            if rng.once_in(2) && !held.is_empty() {
                let gone = rng.below(held.len() as u64) as usize;
                held.swap_remove(gone);
            } else if let Some(buffer) =
                pool.try_allocate(1 + rng.below(BLOCK_BYTES_MAX as u64) as usize)
            {
                held.push(buffer);
            }
            let mut spans: Vec<_> = held
                .iter()
                .map(|b| {
                    (
                        b.page as usize,
                        b.page as usize + (1usize << order_for(b.len())),
                    )
                })
                .collect();
            spans.sort_unstable();
            assert!(
                spans.windows(2).all(|w| w[0].1 <= w[1].0),
                "seed {seed}: blocks overlap"
            );
            let used: usize = spans.iter().map(|s| (s.1 - s.0) * BLOCK_BYTES_MIN).sum();
            assert_eq!(pool.free_bytes() + used, pool.total_bytes(), "seed {seed}");
        }
        held.clear();
        assert_eq!(pool.free_bytes(), pool.total_bytes(), "seed {seed}");
        assert!(
            pool.try_allocate(BLOCK_BYTES_MAX).is_some(),
            "seed {seed}: blocks did not merge"
        );
    }
}

#[test]
fn a_pool_gives_its_region_back_once_nobody_uses_it() {
    let mut arena = Arena::lazy(1 << 20).unwrap();
    let pool = BufferPool::new(arena.take(1 << 20).unwrap(), 4);
    let pin = pool.try_allocate(4096).unwrap().pin(Direction::ToDevice);
    let pool = pool.reclaim().err().unwrap();
    drop(pin);
    let other = pool.clone();
    let pool = pool.reclaim().err().unwrap();
    drop(other);
    assert_eq!(pool.reclaim().ok().unwrap().len(), 1 << 20);
}
