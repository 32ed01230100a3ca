//! How operations end: durability, refusals, back-pressure, futures that are dropped.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use corebay_core::{
    disk::{Disk, DiskError, Durability, Space},
    units::Lba,
};

use super::Bench;
use crate::{Bed, pattern};

/// Flush on a fresh disk, after writes, many at once; durable writes.
pub fn flushes_and_durable_writes_complete<B: Bed>(bed: &mut B) {
    let bench = Bench::new(bed);
    let flush = || bench.on_disk(|disk| async move { disk.flush().await });
    assert_eq!(flush(), Ok(()));
    bench.write(3, 1, 4);
    assert_eq!(flush(), Ok(()));
    let bytes = pattern::blocks(5, 2, 4, bench.block_bytes());
    let buffer = bench.core.filled(&bytes);
    let durable = bench.write_buffers(5, vec![buffer], Durability::Durable);
    assert_eq!(durable, Ok(()));
    bench.expect(3, &[1, 1, 2, 2, 2, 2, 0]);
    let flushes: Vec<_> = (0..50)
        .map(|_| {
            let disk = bench.disk.clone();
            bench.core.spawn(async move { disk.flush().await })
        })
        .collect();
    for flush in flushes {
        bench.core.turn_until("a flush's end", || flush.is_there());
        assert_eq!(flush.take(), Ok(()));
    }
}

/// What was written, cached or durable, is there after closing and opening.
pub fn what_was_written_survives_reopening<B: Bed>(bed: &mut B) {
    let first = Bench::new(bed);
    let (info, last) = (first.disk.info(), first.blocks() - 1);
    first.write(1, 1, 9);
    first.write(last, 2, 1);
    let cleared = first.on_disk(|disk| async move { disk.deallocate(Lba(4), 2).await });
    cleared.expect("deallocate");
    drop(first);
    if !bed.reopen() {
        return;
    }
    let second = Bench::new(bed);
    assert_eq!(second.disk.info(), info);
    second.expect(0, &[0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0]);
    second.expect(last, &[2]);
}

/// Ranges that end or begin beyond the disk are refused, and change nothing.
pub fn blocks_beyond_the_end_are_refused<B: Bed>(bed: &mut B) {
    let bench = Bench::new(bed);
    let end = bench.blocks();
    bench.write(end - 1, 1, 1);
    for (at, blocks) in [(end, 1), (end - 1, 2), (u64::MAX - 1, 4), (1 << 60, 1)] {
        let refused = Err(DiskError::OutOfRange);
        let bytes = blocks * bench.block_bytes();
        let count = blocks as u64;
        assert_eq!(bench.read_bytes(at, blocks).map(|_| ()), refused);
        let buffer = bench.core.buffer(bytes);
        let written = bench.write_buffers(at, vec![buffer], Durability::Cached);
        assert_eq!(written, refused);
        let deallocated =
            bench.on_disk(|disk| async move { disk.deallocate(Lba(at), count).await });
        assert_eq!(deallocated, refused);
        let zeroed = bench.on_disk(|disk| async move {
            disk.write_zeroes(Lba(at), count, Space::Keep, Durability::Cached)
                .await
        });
        assert_eq!(zeroed, refused);
        if bench.disk.info().write_uncorrectable {
            let spoiled =
                bench.on_disk(|disk| async move { disk.write_uncorrectable(Lba(at), count).await });
            assert_eq!(spoiled, refused);
        }
    }
    bench.expect(end - 1, &[1]);
}

/// More operations at once than the disk has room for: each ends, once, and nothing is left behind.
pub fn more_operations_than_the_depth_all_end<B: Bed>(bed: &mut B) {
    let bench = Bench::new(bed);
    let total = bed.depth().unwrap_or(64).saturating_mul(8).min(400);
    let ended = Rc::new(Cell::new(0));
    let size = bench.block_bytes();
    for number in 0..total {
        let (disk, ended) = (bench.disk.clone(), ended.clone());
        let buffer = bench.core.buffer(size * 2);
        let buffers = [buffer.slice(0..size), buffer.slice(size..size * 2)];
        let at = Lba(number as u64 * 2);
        bench.core.spawn(async move {
            let result = match number % 5 {
                0 | 1 => disk.read(at, &buffers).await,
                2 | 3 => disk.write(at, &buffers, Durability::Cached).await,
                _ => disk.flush().await,
            };
            assert_eq!(result, Ok(()));
            ended.set(ended.get() + 1);
        });
    }
    bench
        .core
        .turn_until("the end of all operations", || ended.get() == total);
    assert_eq!(bench.core.pool.free_bytes(), bench.core.pool.total_bytes());
}

/// Polls a future a number of times, then drops it.
struct DropAfter<F> {
    future: Option<Pin<Box<F>>>,
    polls: usize,
}

impl<F: Future> Future for DropAfter<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(future) = &mut self.future else {
            return Poll::Ready(());
        };
        if future.as_mut().poll(context).is_ready() || self.polls <= 1 {
            self.future = None;
            return Poll::Ready(());
        }
        self.polls -= 1;
        Poll::Pending
    }
}

/// Operations whose futures are dropped while they are in flight keep their buffers until they have
/// ended; then all buffers are free, and the disk works as before.
pub fn dropped_operations_keep_their_buffers<B: Bed>(bed: &mut B) {
    let bench = Bench::new(bed);
    let size = bench.block_bytes();
    bench.write(0, 1, 64);
    for number in 0..120u64 {
        let disk = bench.disk.clone();
        let write = number % 2 == 0;
        let at = number % 60;
        let mut buffer = bench.core.buffer(size * 2);
        for (block, lba) in buffer.bytes_mut().chunks_exact_mut(size).zip(at..) {
            pattern::fill(block, lba, 2 + number);
        }
        let operation = async move {
            let buffers = [buffer.slice(0..size), buffer.slice(size..size * 2)];
            drop(buffer);
            let ended = match write {
                true => disk.write(Lba(at), &buffers, Durability::Cached).await,
                false => disk.read(Lba(at), &buffers).await,
            };
            ended.expect("an operation that was not dropped");
        };
        bench.core.spawn(DropAfter {
            future: Some(Box::pin(operation)),
            polls: 1 + usize::try_from(number % 3).unwrap(),
        });
        if number % 7 == 0 {
            bench.core.turn();
        }
    }
    let (pool, executor) = (&bench.core.pool, bench.core.reactor.executor());
    // Those that wait for their second poll are woken by their completions, or never.
    bench.core.turn_until("all buffers' return", || {
        pool.free_bytes() == pool.total_bytes() && executor.live() == 0
    });
    // Each block is of one of the writes, whole.
    assert_eq!(bench.tags(0, 64).len(), 64);
    bench.write(0, 1, 64);
    bench.expect(0, &[1; 64]);
}

/// A core that ends while operations are in flight ends them first: afterwards another core finds
/// whole blocks, and nothing in its way.
pub fn a_core_may_end_amid_operations<B: Bed>(bed: &mut B) {
    for turns in [1, 3] {
        let bench = Bench::new(bed);
        let size = bench.block_bytes();
        for number in 0..40u64 {
            let disk = bench.disk.clone();
            let content = pattern::blocks(number, number + 1, 2, size);
            let buffer = bench.core.filled(&content);
            let _ = bench.core.spawn(async move {
                let buffers = std::slice::from_ref(&buffer);
                match number % 4 {
                    0 => disk.read(Lba(number), buffers).await,
                    1 => disk.flush().await,
                    2 => disk.write(Lba(number), buffers, Durability::Durable).await,
                    _ => disk.write(Lba(number), buffers, Durability::Cached).await,
                }
            });
        }
        for _ in 0..turns {
            bench.core.turn();
        }
        drop(bench);
        let other = Bench::new(bed);
        assert_eq!(other.tags(0, 42).len(), 42);
        other.write(0, 1, 42);
        other.expect(0, &[1; 42]);
        let flushed = other.on_disk(|disk| async move { disk.flush().await });
        assert_eq!(flushed, Ok(()));
    }
}
