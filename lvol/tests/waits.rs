//! Operations that wait for each other, on one core and on two: each ends, and none is lost.

use std::{cell::Cell, future::Future, pin::Pin, rc::Rc, task::Poll};

use crate::support::{Medium, MediumDisk, Node, disk, named};
use corebay_conformance::{Outcome, TestCore};
use corebay_core::{
    disk::{Disk, DiskError, Durability},
    mesh::Wakeups,
    reactor::MachineClock,
    units::{BlockSize, Lba},
};
use corebay_lvol::{PoolCore, Volume, VolumeId, error::PoolError};

const PER_EXTENT: u64 = 256;
const PER_LEAF: u64 = 64 * PER_EXTENT;

fn medium(mib: u64) -> Medium {
    Medium::new(BlockSize::B512, mib << 20, false, 1)
}

/// Another core that has a volume of the node's pool open.
fn other_core(node: &Node, medium: &Medium, id: VolumeId) -> (TestCore, Rc<Volume<MediumDisk>>) {
    let handle = node.pool.share(2, Wakeups::None).unwrap();
    let core = TestCore::new(1, MachineClock::new());
    let part = PoolCore::open(&handle, &core.reactor, medium.open()).unwrap();
    let volume = Volume::open(&part, &node.pool.volume_handle(id).unwrap()).unwrap();
    (core, Rc::new(volume))
}

fn write(
    core: &TestCore,
    volume: &Rc<Volume<MediumDisk>>,
    at: u64,
    blocks: u64,
    tag: u64,
) -> impl Future<Output = Result<(), DiskError>> + 'static {
    let bytes: Vec<u8> = (0..blocks).flat_map(|_| disk::block(tag, 512)).collect();
    let (volume, buffer) = (volume.clone(), core.filled(&bytes));
    async move {
        let from = std::slice::from_ref(&buffer);
        volume.write(Lba(at), from, Durability::Cached).await
    }
}

fn resize(node: &Node, id: VolumeId, blocks: u64) -> Outcome<Result<(), PoolError>> {
    let pool = node.pool.clone();
    (node.core).spawn(async move { pool.resize(id, blocks, true).await })
}

/// Turns both cores until `done`.
fn turn_both(node: &Node, other: &TestCore, what: &str, mut done: impl FnMut() -> bool) {
    node.core.turn_until(what, || {
        other.turn();
        done()
    });
}

/// Lets a future be polled so many times, and drops it.
async fn drop_after<F: Future>(polls: usize, future: F) {
    let mut future = Box::pin(future);
    let mut left = polls;
    std::future::poll_fn(|context| {
        if left == 0 || future.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        left -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[test]
fn a_volume_is_deleted_while_another_one_is_filled() {
    let medium = medium(64);
    let node = Node::create(&medium);
    let (full, empty) = (
        node.create_volume("full", 64 << 10),
        node.create_volume("empty", 1024),
    );
    node.run(|pool| async move { pool.close().await }).unwrap();
    drop(node);
    let node = Node::import_slow(&medium);
    let (volume, stop) = (node.open(full), Rc::new(Cell::new(false)));
    for writer in 0..5u64 {
        let (volume, stop) = (volume.clone(), stop.clone());
        let buffer = node.core.filled(&disk::block(1, 512));
        node.core.spawn(async move {
            let from = std::slice::from_ref(&buffer);
            for at in (writer..64 << 10).step_by(5) {
                if stop.get() {
                    break;
                }
                volume
                    .write(Lba(at), from, Durability::Cached)
                    .await
                    .unwrap();
            }
        });
        // So that something waits whenever something else is committed.
        for _ in 0..=writer {
            node.core.turn();
        }
    }
    let pool = node.pool.clone();
    let deleted = node.core.spawn(async move { pool.delete(empty).await });
    for _ in 0..500 {
        node.core.turn();
    }
    stop.set(true);
    assert_eq!(deleted.take(), Ok(()));
}

#[test]
fn a_check_ends_with_its_pool() {
    for turns in 0..6 {
        let medium = medium(16);
        let node = Node::create(&medium);
        node.create_volume("v", 1024);
        node.run(|pool| async move { pool.close().await }).unwrap();
        drop(node);
        let node = Node::import_slow(&medium);
        let pool = node.pool.clone();
        let checked = node.core.spawn(async move { pool.check().await });
        for _ in 0..turns {
            node.core.turn();
        }
        let destroyed = node.run(|pool| async move { pool.destroy("pool").await });
        assert_eq!(destroyed, Ok(()));
        node.core
            .turn_until("the check's end", || checked.is_there());
        // It looks at no page of a disk that may be another pool's by now.
        assert_eq!(
            checked.take().err(),
            Some(PoolError::Failed),
            "{turns} turns"
        );
        drop(node);
        let found = Node::import(&medium).err();
        assert_eq!(found, Some(PoolError::NotAPool), "{turns} turns");
    }
}

#[test]
fn what_goes_along_with_a_slow_write_is_kept_though_the_snapshot_is_deleted() {
    let medium = medium(16);
    let node = Node::create(&medium);
    let id = node.create_volume("v", 1024);
    let volume = node.open(id);
    node.write(&volume, 0, 10, 1, Durability::Cached).unwrap();
    let snapshot = node.snapshot(id, "s");
    let (other, far) = other_core(&node, &medium, id);
    // Another core's write has got its extent, and stands there.
    let first = other.spawn(write(&other, &far, 0, 1, 2));
    other.turn();
    for _ in 0..20 {
        node.core.turn();
    }
    node.run(move |pool| async move { pool.delete(snapshot).await })
        .unwrap();
    node.settle();
    // What the snapshot shared is the volume's own again, as inflating may find out.
    let pool = node.pool.clone();
    let inflated = node.core.spawn(async move {
        let mut inflate = pool.inflate(id)?;
        while inflate.step().await?.is_some() {}
        Ok::<_, PoolError>(())
    });
    for _ in 0..50 {
        node.core.turn();
    }
    let second = node.core.spawn(write(&node.core, &volume, 1, 1, 3));
    turn_both(&node, &other, "the end of all", || {
        first.is_there() && inflated.is_there() && second.is_there()
    });
    assert_eq!(inflated.take(), Ok(()));
    assert_eq!((first.take(), second.take()), (Ok(()), Ok(())));
    assert_eq!(node.tags(&volume, 0, 4), [2, 3, 1, 1]);
    drop((volume, far));
    node.checked();
}

#[test]
fn writes_go_on_while_much_is_cut_off() {
    const LEAVES: u64 = 40;
    let medium = medium(24);
    let node = Node::create(&medium);
    let id = node.create_volume("v", LEAVES * PER_LEAF);
    let volume = node.open(id);
    for leaf in 0..LEAVES {
        node.write(&volume, leaf * PER_LEAF, 2, 1, Durability::Cached)
            .unwrap();
    }
    node.checkpoint();
    drop((volume, node));
    let node = Node::import_slow(&medium);
    let volume = node.open(id);
    let resized = resize(&node, id, 2);
    let (mut ended, mut turns) = (0, 0);
    let mut writing: Option<Outcome<Result<(), DiskError>>> = None;
    while !resized.is_there() {
        turns += 1;
        assert!(turns < 10_000, "it does not end");
        if let Some(written) = writing.take_if(|writing| writing.is_there()) {
            assert_eq!(written.take(), Ok(()));
            ended += 1;
        }
        writing.get_or_insert_with(|| {
            let (disk, data) = (volume.clone(), node.core.filled(&disk::block(2, 512)));
            node.core.spawn(async move {
                disk.write(Lba(0), std::slice::from_ref(&data), Durability::Cached)
                    .await
            })
        });
        node.core.turn();
    }
    drop(writing);
    assert_eq!(resized.take(), Ok(()));
    assert!(ended * 4 > turns, "{ended} in {turns} turns");
    for _ in 0..20 {
        node.core.turn();
    }
    assert_eq!(node.tags(&volume, 0, 2), [2, 1]);
    drop(volume);
    node.checked();
}

#[test]
fn a_clearing_whose_caller_is_gone_ends_before_the_volume_shrinks_or_goes() {
    for deletes in [false, true] {
        clear_without_a_caller(deletes);
    }
}

fn clear_without_a_caller(deletes: bool) {
    const LEAVES: u64 = 40;
    let medium = medium(24);
    let blocks = LEAVES * PER_LEAF;
    let node = Node::create(&medium);
    let volume = node.open(node.create_volume("v", blocks));
    for leaf in 0..LEAVES {
        node.write(&volume, leaf * PER_LEAF, 2, 1, Durability::Cached)
            .unwrap();
    }
    node.checkpoint();
    drop((volume, node));
    // Its map is read leaf by leaf.
    let node = Node::import(&medium).unwrap();
    let id = node.pool.find("v").unwrap();
    let (other, far) = other_core(&node, &medium, id);
    let clearing = {
        let far = far.clone();
        async move { far.deallocate(Lba(1), blocks - 1).await }
    };
    other.spawn(drop_after(1, clearing));
    other.turn();
    other.turn();
    let far = (!deletes).then_some(far);
    let ended = match deletes {
        false => resize(&node, id, (LEAVES - 1) * PER_LEAF + 1),
        true => {
            let pool = node.pool.clone();
            node.core.spawn(async move { pool.delete(id).await })
        }
    };
    turn_both(&node, &other, "the new size", || ended.is_there());
    assert_eq!(ended.take(), Ok(()));
    for _ in 0..200 {
        node.core.turn();
    }
    assert!(!node.pool.status().failed);
    drop(far);
    node.checked();
}

#[test]
fn a_write_that_is_given_up_leaves_nothing_beyond_the_end() {
    const FAR: u64 = 20 * PER_LEAF;
    for polls in 1..14 {
        // Its journal takes some turns for each batch.
        let medium = Medium::new(BlockSize::B512, 8 << 20, true, 1);
        let node = Node::create(&medium);
        let id = node.create_volume("v", FAR + 8);
        let volume = node.open(id);
        node.write(&volume, 0, 1, 1, Durability::Cached).unwrap();
        let given_up = drop_after(polls, write(&node.core, &volume, FAR, 1, 2));
        let pool = node.pool.clone();
        let resized = node.core.spawn(async move {
            given_up.await;
            pool.resize(id, 8, true).await
        });
        node.core.turn_until("the new size", || resized.is_there());
        assert_eq!(resized.take(), Ok(()), "after {polls} turns");
        let resized = resize(&node, id, FAR + 8);
        node.core.turn_until("the old size", || resized.is_there());
        assert_eq!(resized.take(), Ok(()), "after {polls} turns");
        assert_eq!(node.tags(&volume, FAR, 1), [0], "after {polls} turns");
        drop(volume);
        node.checked();
    }
}

/// A full pool with a volume in it, of which so many extents were given back.
fn nearly_full(medium: &Medium, free: u64) -> (Node, VolumeId, u64) {
    let node = Node::create(medium);
    // Else some of them would be the disk's for a while.
    node.pool.set_trim_rate(0);
    let id = node.create_volume("v", 1 << 20);
    let volume = node.open(id);
    let mut written = 0;
    while node
        .write(&volume, written * PER_EXTENT, 1, 1, Durability::Cached)
        .is_ok()
    {
        written += 1;
    }
    node.deallocate(&volume, 0, free * PER_EXTENT);
    (node, id, written)
}

#[test]
fn a_write_that_needs_more_extents_than_there_are_is_refused_at_once() {
    let medium = medium(8);
    let (node, id, written) = nearly_full(&medium, 1);
    let volume = node.open(id);
    let edge = (written + 1) * PER_EXTENT;
    let spanning = node.write(&volume, edge - 1, 2, 2, Durability::Cached);
    assert_eq!(spanning, Err(DiskError::NoSpace));
    // What it had taken is there for others, and nobody waits behind it.
    node.snapshot(id, "s");
    node.write(&volume, edge, 1, 3, Durability::Cached).unwrap();
    assert_eq!(node.tags(&volume, edge - 1, 2), [0, 3]);
    drop(volume);
    node.checked();
}

#[test]
fn writes_that_need_several_extents_do_not_wait_for_each_other() {
    let medium = medium(8);
    let (node, id, written) = nearly_full(&medium, 3);
    let volume = node.open(id);
    let all: Vec<_> = (0..4)
        .map(|number| {
            let edge = (written + 1 + 2 * number) * PER_EXTENT;
            node.core.spawn(write(&node.core, &volume, edge - 1, 2, 5))
        })
        .collect();
    node.core.turn_until("the end of all writes", || {
        all.iter().all(Outcome::is_there)
    });
    let done = all.iter().filter(|write| write.take().is_ok()).count();
    assert_eq!(done, 1);
    drop(volume);
    node.checked();
}

#[test]
fn the_home_core_leaves_another_ones_writes_their_turn_where_room_is_short() {
    let medium = medium(16);
    let (node, _, written) = nearly_full(&medium, 1);
    node.checkpoint();
    drop(node);
    let node = Node::import_slow(&medium);
    let id = node.pool.find("v").unwrap();
    let (volume, stop) = (node.open(id), Rc::new(Cell::new(false)));
    // New blocks of extents that the volume has.
    for writer in 1..13 {
        let (volume, stop) = (volume.clone(), stop.clone());
        let buffer = node.core.filled(&disk::block(1, 512));
        node.core.spawn(async move {
            let from = std::slice::from_ref(&buffer);
            for at in (writer * 6 * PER_EXTENT..).filter(|at| at % PER_EXTENT > 0) {
                if stop.get() {
                    break;
                }
                let written = volume.write(Lba(at), from, Durability::Cached).await;
                written.unwrap();
            }
        });
    }
    let (other, far) = other_core(&node, &medium, id);
    for _ in 0..50 {
        node.core.turn();
    }
    let written = other.spawn(write(&other, &far, (written - 1) * PER_EXTENT + 1, 1, 2));
    for _ in 0..500 {
        node.core.turn();
        other.turn();
    }
    stop.set(true);
    assert_eq!(written.take(), Ok(()));
}

/// All of them at once, in one task.
async fn all_of<T>(mut futures: Vec<Pin<Box<dyn Future<Output = T>>>>) -> Vec<T> {
    let mut values: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (value, future) in values.iter_mut().zip(&mut futures) {
            if value.is_none()
                && let Poll::Ready(ended) = future.as_mut().poll(context)
            {
                *value = Some(ended);
            }
        }
        match values.iter().all(Option::is_some) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    values.into_iter().flatten().collect()
}

#[test]
fn a_full_pool_ends_more_writes_of_another_core_than_may_be_asked_at_a_time() {
    let medium = medium(8);
    let (node, id, written) = nearly_full(&medium, 3);
    let (other, far) = other_core(&node, &medium, id);
    let writes = (0..700).map(|number| {
        let at = (written + 1 + number) * PER_EXTENT;
        Box::pin(write(&other, &far, at, 1, 2)) as Pin<Box<dyn Future<Output = _>>>
    });
    let ended = other.spawn(all_of(writes.collect()));
    turn_both(&node, &other, "the end of all writes", || ended.is_there());
    let ended = ended.take();
    let done = ended.iter().filter(|write| **write == Ok(())).count();
    let refused = ended
        .iter()
        .filter(|write| **write == Err(DiskError::NoSpace));
    assert_eq!((done, refused.count()), (3, 697));
    drop(far);
    node.checked();
}

#[test]
fn space_that_a_thick_volume_gets_is_nobody_elses_while_it_is_made() {
    let medium = medium(8);
    let node = Node::create(&medium);
    let thin = node.open(node.create_volume("thin", 1 << 20));
    let extents = node.pool.status().available_bytes / (PER_EXTENT * 512) - 4;
    let pool = node.pool.clone();
    let made = node.core.spawn(async move {
        let identity = named("thick");
        let blocks = extents * PER_EXTENT;
        pool.create_volume(&identity, blocks, true).await
    });
    let writes: Vec<_> = (0..12)
        .map(|number| {
            let at = number * PER_EXTENT;
            node.core.spawn(write(&node.core, &thin, at, 1, 1))
        })
        .collect();
    node.core.turn_until("the end of all", || {
        made.is_there() && writes.iter().all(Outcome::is_there)
    });
    let thick = node.open(made.take().unwrap());
    for extent in 0..extents {
        let written = node.write(&thick, extent * PER_EXTENT, 1, 2, Durability::Cached);
        assert_eq!(written, Ok(()), "extent {extent} of {extents}");
    }
    drop((thin, thick));
    node.checked();
}

#[test]
fn a_check_of_a_pool_that_changes_finds_nothing_wrong() {
    const LEAVES: u64 = 24;
    let medium = Medium::new(BlockSize::B512, 64 << 20, true, 1);
    let node = Node::create(&medium);
    let id = node.create_volume("v", LEAVES * PER_LEAF);
    let volume = node.open(id);
    let buffer = node.core.filled(&disk::block(1, 512));
    let stop = Rc::new(Cell::new(false));
    let (pool, stopping) = (node.pool.clone(), stop.clone());
    let changing = node.core.spawn(async move {
        while !stopping.get() {
            let taken = pool.snapshot(&[(id, named("s"))]).await.unwrap();
            // Pages for more than one write of the disk's.
            let writes = (0..LEAVES).map(|leaf| {
                let (volume, buffer) = (volume.clone(), buffer.clone());
                let one = async move {
                    let from = std::slice::from_ref(&buffer);
                    let at = Lba(leaf * PER_LEAF);
                    volume.write(at, from, Durability::Cached).await.unwrap();
                };
                Box::pin(one) as Pin<Box<dyn Future<Output = ()>>>
            });
            all_of(writes.collect()).await;
            pool.checkpoint().await.unwrap();
            pool.delete(taken[0]).await.unwrap();
            pool.settled().await.unwrap();
        }
    });
    for turns in 0..2 {
        for _ in 0..turns * 5 {
            node.core.turn();
        }
        assert_eq!(node.checked().damaged_copies, 0, "after {turns} turns");
    }
    stop.set(true);
    node.core
        .turn_until("the end of the changes", || changing.is_there());
}
