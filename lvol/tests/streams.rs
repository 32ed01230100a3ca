//! Snapshots sent from pool to pool: whole, as differences, interrupted, cut off, changed on the way.

use crate::support::{self, Medium, Node, cuts::each_cut, named};
use corebay_conformance::TestCore;
use corebay_core::{
    arena::Arena,
    buffer::BufferPool,
    disk::{Disk, Durability},
    mesh::Wakeups,
    reactor::MachineClock,
    rng::Rng,
    units::{BlockSize, Lba},
};
use corebay_lvol::{
    Identity, NamespaceIds, Pool, PoolContext, PoolCore, ReceiveError, ReceiveOptions, Volume,
    VolumeId,
    error::PoolError,
    format::stream::{FRAME_HEADER_BYTES, StreamFault},
};

const SIZE: u64 = 3000;

fn medium() -> Medium {
    Medium::new(BlockSize::B512, 16 << 20, true, 1)
}

fn snapshot(node: &Node, of: VolumeId, name: &str, uuid: u8) -> VolumeId {
    let identity = Identity {
        name: name.to_owned(),
        uuid: [uuid; 16],
    };
    let list = [(of, identity)];
    node.run(|pool| async move { pool.snapshot(&list).await })
        .unwrap()[0]
}

/// The frames of a stream from a block on.
fn frames(node: &Node, from: Option<VolumeId>, to: VolumeId, start: u64) -> Vec<Vec<u8>> {
    node.run(move |pool| async move {
        let mut sender = pool.send(from, to, start).unwrap();
        let mut frames = Vec::new();
        loop {
            let mut frame = Vec::new();
            if !sender.next(&mut frame).await.unwrap() {
                assert!(frame.is_empty());
                assert_eq!(sender.progress().position, sender.progress().blocks);
                return frames;
            }
            frames.push(frame);
        }
    })
}

fn as_it_was(_: &str, name: &str) -> Option<String> {
    Some(name.to_owned())
}

fn options() -> ReceiveOptions {
    ReceiveOptions {
        volume: named("copy"),
        snapshot: None,
        rename: as_it_was,
    }
}

fn receive(node: &Node, bytes: &[u8]) -> Result<VolumeId, ReceiveError> {
    let bytes = bytes.to_vec();
    node.run(move |pool| async move {
        let mut receiver = pool.receive(&options());
        let mut done = None;
        for part in bytes.chunks(1000) {
            match receiver.push(part).await {
                Ok(snapshot) => done = done.or(snapshot),
                Err(error) => return Err(error),
            }
        }
        receiver.finish().await?;
        Ok(done.expect("a stream that has ended has made a snapshot"))
    })
}

fn content(node: &Node, id: VolumeId) -> Vec<u64> {
    let volume = node.open(id);
    node.tags(&volume, 0, volume.info().blocks)
}

/// A pool with a volume and two snapshots of it.
fn source() -> (Node, VolumeId, [VolumeId; 2]) {
    let node = Node::create(&medium());
    let id = node.create_volume("v", SIZE);
    let volume = node.open(id);
    node.write(&volume, 100, 600, 1, Durability::Cached)
        .unwrap();
    node.write(&volume, 2999, 1, 2, Durability::Cached).unwrap();
    let first = snapshot(&node, id, "one", 11);
    node.write(&volume, 150, 3, 3, Durability::Cached).unwrap();
    node.write(&volume, 1500, 2, 4, Durability::Cached).unwrap();
    node.deallocate(&volume, 400, 50);
    let second = snapshot(&node, id, "two", 12);
    node.write(&volume, 0, 2000, 9, Durability::Cached).unwrap();
    drop(volume);
    (node, id, [first, second])
}

#[test]
fn a_snapshot_and_a_difference_arrive_as_they_were() {
    let (node, _, [first, second]) = source();
    let other = Node::create(&medium());
    let whole = frames(&node, None, first, 0);
    let received = receive(&other, &whole.concat()).unwrap();
    let record = other.pool.volume(received).unwrap();
    assert_eq!((&record.name[..], record.uuid), ("one", [11; 16]));
    assert_eq!(content(&other, received), content(&node, first));
    let copy = other.pool.find("copy").unwrap();
    assert_eq!(content(&other, copy), content(&node, first));
    // The difference: five blocks of data, fifty of zeroes.
    let difference = frames(&node, Some(first), second, 0);
    let bytes: usize = difference.iter().map(Vec::len).sum();
    assert!(
        bytes < 5 * 512 + 10 * FRAME_HEADER_BYTES + 100,
        "{bytes} bytes"
    );
    let received = receive(&other, &difference.concat()).unwrap();
    assert_eq!(content(&other, received), content(&node, second));
    assert_eq!(content(&other, copy), content(&node, second));
    // It is a volume like any other now.
    let volume = other.open(copy);
    other.write(&volume, 5, 5, 77, Durability::Durable).unwrap();
    other.checked();
    drop(volume);
    // Between two that have nothing in common, all is sent that differs.
    let alone = node.create_volume("w", SIZE);
    let volume = node.open(alone);
    node.write(&volume, 200, 600, 1, Durability::Cached)
        .unwrap();
    let third = snapshot(&node, alone, "three", 13);
    drop(volume);
    let back = other.pool.find("two").unwrap();
    other
        .run(move |pool| async move { pool.roll_back(copy, back).await })
        .unwrap();
    let received = receive(&other, &frames(&node, Some(second), third, 0).concat()).unwrap();
    assert_eq!(content(&other, received), content(&node, third));
    other.checked();
}

#[test]
fn chains_of_random_changes_arrive() {
    for seed in 0..5 {
        let mut rng = Rng::from_seed(seed);
        let (node, other) = (Node::create(&medium()), Node::create(&medium()));
        let id = node.create_volume("v", SIZE);
        let mut base = None;
        for round in 0..8u8 {
            for step in 0..rng.below(6) {
                let blocks = node.pool.volume(id).unwrap().blocks;
                let count = 1 + rng.below(300.min(blocks));
                let at = rng.below(blocks - count + 1);
                let volume = node.open(id);
                match rng.below(5) {
                    0 => node.deallocate(&volume, at, count),
                    1 => {
                        // To where the maps have more levels, and back.
                        let blocks = [SIZE, 100, 20_000, 256 * 64 * 513][rng.below(4) as usize];
                        node.run(move |pool| async move { pool.resize(id, blocks, true).await })
                            .unwrap();
                    }
                    tag => node
                        .write(
                            &volume,
                            at,
                            count,
                            u64::from(round) * 10 + step + (tag > 2) as u64,
                            Durability::Cached,
                        )
                        .unwrap(),
                }
            }
            let taken = snapshot(&node, id, &format!("s{round}"), round + 1);
            let stream = frames(&node, base, taken, 0).concat();
            let received = receive(&other, &stream).unwrap();
            let (a, b) = (node.open(taken), other.open(received));
            assert_eq!(a.info().blocks, b.info().blocks);
            let most = a.info().blocks.min(21_000);
            assert_eq!(
                node.tags(&a, 0, most),
                other.tags(&b, 0, most),
                "seed {seed}"
            );
            assert!(a.mapped_blocks() >= b.mapped_blocks());
            let end = a.info().blocks - 50;
            assert_eq!(node.tags(&a, end, 50), other.tags(&b, end, 50));
            base = Some(taken);
        }
        other.checked();
    }
}

#[test]
fn a_stream_that_breaks_off_goes_on_where_it_was() {
    let (node, _, [first, second]) = source();
    let whole = frames(&node, None, first, 0);
    for cut in 1..whole.len() {
        let medium = medium();
        let mut other = Node::create(&medium);
        let mut part = whole[..cut].concat();
        part.extend(&whole[cut][..whole[cut].len() / 2]);
        let broken = receive(&other, &part);
        assert_eq!(broken, Err(ReceiveError::Stream(StreamFault::Truncated)));
        // Nobody sees half of it.
        let id = other.pool.find("copy").unwrap();
        assert_eq!(other.pool.open(id).map(|_| ()), Err(PoolError::Busy));
        assert_eq!(other.pool.find("one"), None);
        let sharing =
            other.run(move |pool| async move { pool.clone_volume(id, &named("clone")).await });
        assert_eq!(sharing, Err(PoolError::Busy));
        if cut % 2 == 1 {
            drop(other);
            medium.cut_power();
            other = Node::import(&medium).unwrap();
        }
        let state = other.pool.volume(id).unwrap().receiving.unwrap();
        // Too far on is refused, as is another stream.
        if state.next() < SIZE {
            let late = frames(&node, None, first, SIZE).concat();
            assert_eq!(receive(&other, &late), Err(ReceiveError::Gap(state.next())));
        }
        let another = frames(&node, Some(first), second, 0).concat();
        assert_eq!(receive(&other, &another), Err(ReceiveError::OtherStream));
        let rest = frames(&node, None, first, state.next());
        assert!(
            cut < 3 || rest.len() < whole.len(),
            "it does not begin anew"
        );
        let received = receive(&other, &rest.concat()).unwrap();
        assert_eq!(content(&other, received), content(&node, first));
        other.checked();
    }
}

#[test]
fn what_does_not_suit_is_refused() {
    let (node, id, [first, second]) = source();
    let whole = frames(&node, None, first, 0).concat();
    let difference = frames(&node, Some(first), second, 0).concat();
    let other = Node::create(&medium());
    assert_eq!(receive(&other, &difference), Err(ReceiveError::NoBase));
    let late = frames(&node, None, first, 7).concat();
    assert_eq!(receive(&other, &late), Err(ReceiveError::Gap(0)));
    assert_eq!(other.pool.volumes().len(), 0);
    let received = receive(&other, &whole).unwrap();
    assert_eq!(
        receive(&other, &whole),
        Err(ReceiveError::AlreadyThere(received))
    );
    let copy = other.pool.find("copy").unwrap();
    // A volume that was written since is not overwritten.
    let volume = other.open(copy);
    other.write(&volume, 9, 1, 5, Durability::Cached).unwrap();
    drop(volume);
    assert_eq!(receive(&other, &difference), Err(ReceiveError::Changed));
    other
        .run(move |pool| async move { pool.roll_back(copy, received).await })
        .unwrap();
    receive(&other, &difference).unwrap();
    let large = Node::create(&Medium::new(BlockSize::B4096, 64 << 20, false, 1));
    assert_eq!(receive(&large, &whole), Err(ReceiveError::OtherBlockSize));
    let sent = |from, to| node.pool.send(from, to, 0).map(|_| ());
    assert_eq!(sent(None, id), Err(PoolError::WrongKind));
    assert_eq!(sent(Some(id), first), Err(PoolError::WrongKind));
    // What is being sent is not deleted.
    let sender = node.pool.send(None, first, 0).unwrap();
    let deleted = node.run(move |pool| async move { pool.delete(first).await });
    assert_eq!(deleted, Err(PoolError::Busy));
    drop(sender);
}

#[test]
fn a_changed_stream_changes_nothing_that_anybody_sees() {
    let (node, _, [first, second]) = source();
    let base = medium();
    let other = Node::create(&base);
    receive(&other, &frames(&node, None, first, 0).concat()).unwrap();
    other.run(|pool| async move { pool.close().await }).unwrap();
    let difference = frames(&node, Some(first), second, 0).concat();
    for at in (0..difference.len()).step_by(97) {
        let medium = base.copy(1);
        let other = Node::import(&medium).unwrap();
        let mut wrong = difference.clone();
        wrong[at] ^= 0x10;
        let refused = receive(&other, &wrong);
        assert!(
            matches!(refused, Err(ReceiveError::Stream(_))),
            "byte {at}: {refused:?}"
        );
        assert_eq!(other.pool.find("two"), None);
        let copy = other.pool.find("copy").unwrap();
        if other.pool.volume(copy).unwrap().receiving.is_some() {
            other
                .run(move |pool| async move { pool.abort_receive(copy).await })
                .unwrap();
        }
        assert_eq!(content(&other, copy), content(&node, first));
        other.settle();
        let received = receive(&other, &difference).unwrap();
        assert_eq!(content(&other, received), content(&node, second));
        other.checked();
    }
}

#[test]
fn a_whole_snapshot_that_is_given_up_leaves_nothing() {
    let (node, _, [first, _]) = source();
    let whole = frames(&node, None, first, 0);
    let other = Node::create(&medium());
    let _ = receive(&other, &whole[..2].concat());
    let copy = other.pool.find("copy").unwrap();
    other
        .run(move |pool| async move { pool.abort_receive(copy).await })
        .unwrap();
    other.settle();
    assert_eq!(other.pool.volumes().len(), 0);
    receive(&other, &whole.concat()).unwrap();
    other.checked();
}

#[test]
fn a_difference_is_there_or_goes_on_when_the_power_fails() {
    let (node, _, [first, second]) = source();
    let base = medium();
    let other = Node::create(&base);
    receive(&other, &frames(&node, None, first, 0).concat()).unwrap();
    other.run(|pool| async move { pool.close().await }).unwrap();
    drop(other);
    let difference = frames(&node, Some(first), second, 0).concat();
    let (before, after) = (content(&node, first), content(&node, second));
    each_cut(
        &base,
        7,
        |other| {
            receive(other, &difference).unwrap();
        },
        |other, ended| {
            let copy = other.pool.find("copy").unwrap();
            let state = other.pool.volume(copy).unwrap().receiving;
            let done = other.pool.find("two");
            assert!(!ended || done.is_some());
            assert!(done.is_none() || state.is_none());
            if done.is_none() {
                if state.is_none() {
                    assert_eq!(content(other, copy), before);
                }
                let start = state.map_or(0, |state| state.next());
                let rest = frames(&node, Some(first), second, start).concat();
                receive(other, &rest).unwrap();
            }
            assert_eq!(content(other, other.pool.find("two").unwrap()), after);
            assert_eq!(content(other, other.pool.find("one").unwrap()), before);
            assert_eq!(content(other, copy), after);
        },
    );
}

#[test]
fn more_streams_than_the_memory_has_buffers_are_received_at_once() {
    const STREAMS: u64 = 24;
    let (node, _, [first, _]) = source();
    let mut frames = frames(&node, None, first, 0);
    let (begin, rest) = (frames.remove(0), frames.concat());
    let medium = Medium::new(BlockSize::B512, 32 << 20, true, 1);
    let core = TestCore::single();
    let mut arena = Arena::lazy(1 << 20).unwrap();
    let context = PoolContext {
        reactor: core.reactor.clone(),
        buffers: BufferPool::new(arena.take(1 << 20).unwrap(), 512),
    };
    let disk = medium.open();
    let made = core.run(async move { Pool::create(&context, disk, &support::options()).await });
    let other = Node {
        pool: made.unwrap(),
        core,
    };
    let all: Vec<_> = (0..STREAMS)
        .map(|number| {
            let options = ReceiveOptions {
                volume: named(&format!("copy {number}")),
                snapshot: Some(format!("snapshot {number}")),
                rename: as_it_was,
            };
            let (pool, begin) = (other.pool.clone(), begin.clone());
            other.core.run(async move {
                let mut receiver = pool.receive(&options);
                assert_eq!(receiver.push(&begin).await, Ok(None));
                receiver
            })
        })
        .collect();
    // All their data come at once.
    let all: Vec<_> = (all.into_iter())
        .map(|mut receiver| {
            let rest = rest.clone();
            (other.core).spawn(async move { receiver.push(&rest).await.map(|made| made.is_some()) })
        })
        .collect();
    other
        .core
        .turn_until("the end of all", || all.iter().all(|one| one.is_there()));
    for one in all {
        assert_eq!(one.take(), Ok(true));
    }
    other.checked();
}

/// A pool with a volume `copy` of so many blocks that has a snapshot, and the frames of the difference from
/// that to a snapshot that has fewer blocks.
fn shrinking(blocks: u64, thick: bool) -> (Node, VolumeId, Vec<Vec<u8>>) {
    let source = Node::create(&medium());
    let id = source.create_volume("v", blocks);
    let first = snapshot(&source, id, "one", 11);
    source
        .run(move |pool| async move { pool.resize(id, 256, true).await })
        .unwrap();
    source
        .write(&source.open(id), 3, 1, 5, Durability::Cached)
        .unwrap();
    let second = snapshot(&source, id, "two", 12);
    let node = Node::create(&medium());
    let copy = node
        .run(move |pool| async move { pool.create_volume(&named("copy"), blocks, thick).await });
    let copy = copy.unwrap();
    snapshot(&node, copy, "one", 11);
    (node, copy, frames(&source, Some(first), second, 0))
}

fn abort(node: &Node, id: VolumeId) -> Result<(), PoolError> {
    node.run(move |pool| async move { pool.abort_receive(id).await })
}

fn delete(node: &Node, id: VolumeId) -> Result<(), PoolError> {
    node.run(move |pool| async move { pool.delete(id).await })
}

#[test]
fn a_thick_volume_gets_its_size_back_only_where_the_space_is_there() {
    const EXTENTS: u64 = 20;
    let (node, copy, frames) = shrinking(EXTENTS * 256, true);
    let broken = receive(&node, &frames[0]);
    assert_eq!(broken, Err(ReceiveError::Stream(StreamFault::Truncated)));
    assert_eq!(node.pool.volume(copy).unwrap().blocks, 256);
    let free = node.pool.status().available_bytes / (256 * 512);
    let other = node.run(move |pool| async move {
        pool.create_volume(&named("other"), (free - 5) * 256, true)
            .await
    });
    assert_eq!(abort(&node, copy), Err(PoolError::NoSpace));
    assert!(node.pool.volume(copy).unwrap().receiving.is_some());
    delete(&node, other.unwrap()).unwrap();
    node.settle();
    abort(&node, copy).unwrap();
    assert_eq!(node.pool.volume(copy).unwrap().blocks, EXTENTS * 256);
    assert_eq!(node.pool.status().reserved_bytes, EXTENTS * 256 * 512);
    node.checked();
}

#[test]
fn the_base_of_a_difference_stays_until_the_stream_has_ended_or_was_given_up() {
    let (node, copy, frames) = shrinking(SIZE, false);
    let broken = receive(&node, &frames[..2].concat());
    assert_eq!(broken, Err(ReceiveError::Stream(StreamFault::Truncated)));
    let base = node.pool.find("one").unwrap();
    assert_eq!(delete(&node, base), Err(PoolError::BaseOfStream));
    let renumber = |uuid| {
        node.run(move |pool| async move {
            let ids = NamespaceIds {
                uuid: [uuid; 16],
                ..NamespaceIds::default()
            };
            pool.set_namespace_ids(base, &ids).await
        })
    };
    assert_eq!(renumber(13), Err(PoolError::BaseOfStream));
    abort(&node, copy).unwrap();
    assert_eq!(node.pool.volume(copy).unwrap().blocks, SIZE);
    renumber(13).unwrap();
    renumber(11).unwrap();
    receive(&node, &frames.concat()).unwrap();
    delete(&node, base).unwrap();
    node.settle();
    node.checked();
}

/// Whoever gives a stream up while it ends undoes nothing of what was received.
#[test]
fn a_stream_that_has_been_received_is_not_given_up() {
    let (source, _, [first, second]) = source();
    let whole = frames(&source, None, first, 0);
    let difference = frames(&source, Some(first), second, 0);
    for (frames, snapshot) in [(&whole, first), (&difference, second)] {
        let base = medium();
        let node = Node::create(&base);
        if snapshot == second {
            receive(&node, &whole.concat()).unwrap();
        }
        node.run(|pool| async move { pool.close().await }).unwrap();
        drop(node);
        let (last, before) = frames.split_last().unwrap();
        for turns in 0..12 {
            let node = Node::import_slow(&base.copy(1));
            let mut receiver = node.pool.receive(&options());
            let (before, last) = (before.concat(), last.clone());
            let mut receiver = node.core.run(async move {
                assert_eq!(receiver.push(&before).await, Ok(None));
                receiver
            });
            let copy = node.pool.find("copy").unwrap();
            let ended = (node.core).spawn(async move { receiver.push(&last).await });
            for _ in 0..turns {
                node.core.turn();
            }
            let pool = node.pool.clone();
            let aborted = (node.core).spawn(async move { pool.abort_receive(copy).await });
            let both = || ended.is_there() && aborted.is_there();
            node.core.turn_until("the end of both", both);
            assert!(aborted.take().is_err(), "after {turns} turns");
            let received = ended.take().unwrap().expect("a snapshot");
            assert_eq!(content(&node, received), content(&source, snapshot));
            assert_eq!(content(&node, copy), content(&source, snapshot));
        }
    }
}

/// What another core has asked for goes on though nobody waits for it any more.
#[test]
fn a_difference_is_compared_with_what_the_volume_has_once_nothing_changes_it() {
    let (source, _, [first, second]) = source();
    let base = medium();
    let node = Node::create(&base);
    receive(&node, &frames(&source, None, first, 0).concat()).unwrap();
    node.run(|pool| async move { pool.close().await }).unwrap();
    drop(node);
    let difference = frames(&source, Some(first), second, 0).concat();
    let mut changed = 0;
    for turns in 0..12 {
        let medium = base.copy(1);
        let node = Node::import_slow(&medium);
        let copy = node.pool.find("copy").unwrap();
        let handle = node.pool.share(2, Wakeups::None).unwrap();
        let other = TestCore::new(1, MachineClock::new());
        let part = PoolCore::open(&handle, &other.reactor, medium.open_slow(&other.reactor));
        let volume = Volume::open(&part.unwrap(), &node.pool.volume_handle(copy).unwrap());
        other.spawn(async move {
            let volume = volume.unwrap();
            let mut clearing = Box::pin(volume.deallocate(Lba(600), 50));
            std::future::poll_fn(|context| {
                assert!(clearing.as_mut().poll(context).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
        });
        other.turn();
        for _ in 0..turns {
            node.core.turn();
        }
        let mut receiver = node.pool.receive(&options());
        let bytes = difference.clone();
        let received = (node.core).spawn(async move { receiver.push(&bytes).await });
        node.core.turn_until("the stream", || {
            other.turn();
            received.is_there()
        });
        match received.take() {
            Err(error) => {
                assert_eq!(error, ReceiveError::Changed);
                changed += 1;
            }
            Ok(received) => assert_eq!(
                content(&node, received.expect("a snapshot")),
                content(&source, second),
                "after {turns} turns"
            ),
        }
    }
    assert!(changed > 0);
}
