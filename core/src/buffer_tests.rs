//! The buddy allocator against a slow model, and the rules of windows and pins.

use super::*;
use crate::{
    arena::{Arena, Hugepages},
    executor::Executor,
    rng::Rng,
};

fn pool(bytes: usize) -> BufferPool {
    let mut arena = Arena::new(bytes, Hugepages::Off).unwrap();
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
