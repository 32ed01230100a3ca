//! Clones that become independent, and trees of snapshots that change their root.

use crate::support::{Medium, Node, cuts::each_cut, disk, model::Model, named};
use corebay_core::{
    disk::{Disk, Durability},
    rng::Rng,
    units::{BlockSize, Lba},
};
use corebay_lvol::{VolumeId, error::PoolError};

const SIZE: u64 = 2000;

fn medium(mib: u64) -> Medium {
    Medium::new(BlockSize::B512, mib << 20, true, 1)
}

fn clone_of(node: &Node, of: VolumeId, name: &'static str) -> VolumeId {
    node.run(move |pool| async move { pool.clone_volume(of, &named(name)).await })
        .unwrap()
}

fn inflate(node: &Node, id: VolumeId) -> Result<u64, PoolError> {
    node.run(move |pool| async move {
        let mut inflate = pool.inflate(id)?;
        let mut copied = 0;
        while let Some(progress) = inflate.step().await? {
            assert!(progress.position < progress.blocks && progress.copied > copied);
            copied = progress.copied;
        }
        Ok(copied)
    })
}

fn shared(node: &Node, id: VolumeId) -> u64 {
    node.run(move |pool| async move { pool.volume_space(id).await })
        .unwrap()
        .shared
}

/// A volume with two snapshots, and a clone of the second that differs a little; the clone's content.
fn family(node: &Node) -> (VolumeId, VolumeId, Vec<u64>) {
    let id = node.create_volume("v", SIZE);
    let volume = node.open(id);
    node.write(&volume, 100, 900, 1, Durability::Cached)
        .unwrap();
    node.snapshot(id, "s");
    node.write(&volume, 300, 5, 2, Durability::Cached).unwrap();
    node.write(&volume, 400, 1, 3, Durability::Cached).unwrap();
    let snapshot = node.snapshot(id, "t");
    let clone = clone_of(node, snapshot, "c");
    let volume = node.open(clone);
    node.write(&volume, 350, 7, 4, Durability::Cached).unwrap();
    node.write(&volume, 1500, 3, 5, Durability::Cached).unwrap();
    node.deallocate(&volume, 600, 100);
    node.core
        .run({
            let volume = volume.clone();
            async move { volume.flush().await }
        })
        .unwrap();
    let tags = node.tags(&volume, 0, SIZE);
    (id, clone, tags)
}

#[test]
fn an_inflated_clone_shares_nothing_and_has_the_same_content() {
    let medium = medium(16);
    let node = Node::create(&medium);
    let (_, clone, tags) = family(&node);
    assert!(shared(&node, clone) > 0);
    assert_eq!(node.pool.origin_of(clone), node.pool.find("t"));
    let copied = inflate(&node, clone).unwrap();
    // All but what it had written, and the holes.
    assert_eq!(
        copied,
        tags.iter().filter(|tag| **tag != 0).count() as u64 - 3
    );
    assert_eq!(shared(&node, clone), 0);
    assert_eq!(node.pool.origin_of(clone), None);
    assert_eq!(inflate(&node, clone), Ok(0), "once is enough");
    let check = |node: &Node| {
        let volume = node.open(clone);
        assert_eq!(node.tags(&volume, 0, SIZE), tags);
        node.checked();
    };
    check(&node);
    for name in ["s", "v", "t"] {
        let id = node.pool.find(name).unwrap();
        node.run(move |pool| async move { pool.delete(id).await })
            .unwrap();
        node.settle();
        check(&node);
    }
    let snapshot = node.snapshot(clone, "u");
    assert_eq!(
        node.run(move |pool| async move { pool.inflate(snapshot).map(|_| ()) }),
        Err(PoolError::WrongKind)
    );
    drop(node);
    check(&Node::import(&medium).unwrap());
}

#[test]
fn hosts_write_and_snapshots_are_taken_while_a_clone_is_inflated() {
    for seed in 0..6 {
        let node = Node::create(&medium(24));
        let (_, clone, tags) = family(&node);
        let mut model = Model::new(SIZE);
        for (block, tag) in model.blocks.iter_mut().zip(&tags) {
            *block = vec![*tag];
        }
        let pool = node.pool.clone();
        let end = node.core.spawn(async move {
            let mut inflate = pool.inflate(clone)?;
            while inflate.step().await?.is_some() {}
            Ok::<_, PoolError>(())
        });
        let volume = node.open(clone);
        let mut rng = Rng::from_seed(seed);
        let mut under_way = Vec::new();
        let mut tag = 100;
        let mut snapshot = None;
        while !end.is_there() || tag < 160 {
            node.core.turn();
            if rng.once_in(3) && tag < 160 {
                tag += 1;
                let (at, count) = (rng.below(1000), 1 + rng.below(9));
                model.begin(at, count, if tag % 5 == 0 { 0 } else { tag });
                let (volume, buffer) = (
                    volume.clone(),
                    node.core
                        .filled(&disk::block(tag, 512).repeat(count as usize)),
                );
                let write = node.core.spawn(async move {
                    match tag % 5 {
                        0 => volume.deallocate(Lba(at), count).await,
                        _ => volume.write(Lba(at), &[buffer], Durability::Cached).await,
                    }
                });
                // Writes of the same blocks have no order among each other.
                node.core.turn_until("a write's end", || write.is_there());
                under_way.push(write);
                model.sure(at, count);
            }
            if tag == 130 && snapshot.is_none() {
                snapshot = Some((node.snapshot(clone, "during"), model.clone()));
            }
        }
        end.take().unwrap();
        under_way
            .into_iter()
            .for_each(|write| write.take().unwrap());
        model.expect_newest(&node.tags(&volume, 0, SIZE), "the clone");
        let (snapshot, model) = snapshot.unwrap();
        model.expect_newest(&node.tags(&node.open(snapshot), 0, SIZE), "its snapshot");
        node.checked();
    }
}

#[test]
fn inflating_in_a_full_pool_stops_and_goes_on() {
    let node = Node::create(&medium(8));
    let (_, clone, tags) = family(&node);
    let filler = node.open(node.create_volume("f", 1 << 20));
    let mut written = 0;
    while node
        .write(&filler, written * 256, 256, 9, Durability::Cached)
        .is_ok()
    {
        written += 1;
    }
    assert_eq!(inflate(&node, clone), Err(PoolError::NoSpace));
    let volume = node.open(clone);
    assert_eq!(node.tags(&volume, 0, SIZE), tags);
    assert!(node.pool.origin_of(clone).is_some());
    node.deallocate(&filler, 0, 256 * 6);
    inflate(&node, clone).unwrap();
    assert_eq!(shared(&node, clone), 0);
    assert_eq!(node.tags(&volume, 0, SIZE), tags);
    node.checked();
}

#[test]
fn a_promoted_clone_takes_its_origins_place() {
    let medium = medium(8);
    let node = Node::create(&medium);
    let id = node.create_volume("v", 100);
    let [a, b, c] = ["a", "b", "c"].map(|name| node.snapshot(id, name));
    let clone = clone_of(&node, b, "clone");
    let later = node.snapshot(clone, "later");
    let promote = |node: &Node, id| node.run(move |pool| async move { pool.promote(id).await });
    assert_eq!(promote(&node, id), Err(PoolError::WrongKind));
    assert_eq!(promote(&node, a), Err(PoolError::WrongKind));
    promote(&node, clone).unwrap();
    let look = |node: &Node| {
        let ids = |of| {
            node.pool
                .snapshots_of(of)
                .into_iter()
                .map(|(id, _)| id)
                .collect::<Vec<_>>()
        };
        assert_eq!(ids(clone), [a, b, later]);
        assert_eq!(ids(id), [c]);
        assert_eq!(node.pool.origin_of(id), Some(b));
        assert_eq!(node.pool.origin_of(clone), None);
    };
    look(&node);
    assert_eq!(promote(&node, clone), Err(PoolError::WrongKind));
    node.checkpoint();
    look(&Node::import(&medium).unwrap());
    // And back.
    promote(&node, id).unwrap();
    assert_eq!(node.pool.origin_of(clone), Some(b));
    assert_eq!(node.pool.snapshots_of(id).len(), 3);
    // A number that is used again is another volume.
    node.run(move |pool| async move { pool.delete(b).await })
        .unwrap();
    node.settle();
    assert_eq!(node.pool.origin_of(clone), None);
    assert_eq!(node.create_volume("w", 10), b);
    assert_eq!(node.pool.origin_of(clone), None);
}

#[test]
fn the_content_stays_whenever_the_power_fails_amid_inflating() {
    let base = medium(8);
    let node = Node::create(&base);
    let (_, clone, tags) = family(&node);
    let origin = node.tags(&node.open(node.pool.find("t").unwrap()), 0, SIZE);
    node.run(|pool| async move { pool.close().await }).unwrap();
    drop(node);
    each_cut(
        &base,
        37,
        |node| {
            inflate(node, clone).unwrap();
        },
        |node, ended| {
            let snapshot = node.pool.find("t").unwrap();
            assert_eq!(node.tags(&node.open(clone), 0, SIZE), tags);
            assert_eq!(node.tags(&node.open(snapshot), 0, SIZE), origin);
            assert!(!ended || node.pool.origin_of(clone).is_none());
            inflate(node, clone).unwrap();
            assert_eq!(shared(node, clone), 0);
            assert_eq!(node.tags(&node.open(clone), 0, SIZE), tags);
        },
    );
}

#[test]
fn promoting_goes_on_after_a_loss_of_power() {
    let base = medium(8);
    let node = Node::create(&base);
    let id = node.create_volume("v", 100);
    let all = ["a", "b", "c"].map(|name| node.snapshot(id, name));
    let clone = clone_of(&node, all[2], "clone");
    node.run(|pool| async move { pool.close().await }).unwrap();
    drop(node);
    let promote = |node: &Node| node.run(move |pool| async move { pool.promote(clone).await });
    each_cut(
        &base,
        5,
        |node| promote(node).unwrap(),
        |node, ended| {
            if node.pool.origin_of(clone).is_some() {
                assert!(!ended);
                promote(node).unwrap();
            }
            assert_eq!(node.pool.snapshots_of(clone).len(), 3);
            assert_eq!(node.pool.origin_of(id), Some(all[2]));
        },
    );
}

#[test]
fn a_group_of_snapshots_is_taken_whole_or_not_when_the_power_fails() {
    let base = medium(8);
    let node = Node::create(&base);
    let ids = ["a", "b", "c"].map(|name| node.create_volume(name, 100));
    for (tag, id) in (1..).zip(ids) {
        let volume = node.open(id);
        node.write(&volume, 0, 20, tag, Durability::Durable)
            .unwrap();
    }
    node.run(|pool| async move { pool.close().await }).unwrap();
    drop(node);
    each_cut(
        &base,
        3,
        |node| {
            let list = ids.map(|id| (id, named(&format!("s{}", id.0))));
            node.run(move |pool| async move { pool.snapshot(&list).await })
                .unwrap();
            node.run(move |pool| async move { pool.set_flags(ids[0], Some(true), None).await })
                .unwrap();
        },
        |node, ended| {
            let all = ids.map(|id| node.pool.snapshots_of(id));
            let count: usize = all.iter().map(Vec::len).sum();
            assert!(count == 3 || (count == 0 && !ended), "{count}");
            for (tag, snapshots) in (1..).zip(all) {
                for (snapshot, _) in snapshots {
                    let volume = node.open(snapshot);
                    assert_eq!(node.tags(&volume, 0, 21)[..20], [tag; 20]);
                }
            }
            let read_only = node.pool.volume(ids[0]).unwrap().read_only;
            assert!(read_only || !ended);
            let volume = node.open(ids[0]);
            let written = node.write(&volume, 0, 1, 9, Durability::Cached);
            assert_eq!(written.is_err(), read_only);
        },
    );
}

fn rename(node: &Node, id: VolumeId, name: &'static str) -> Result<(), PoolError> {
    node.run(move |pool| async move { pool.rename(id, name).await })
}

fn names(node: &Node) -> Vec<String> {
    let all = node.pool.volumes().into_iter();
    let mut names: Vec<String> = all.map(|(_, record)| record.name).collect();
    names.sort_unstable();
    names
}

#[test]
fn snapshots_are_renamed_with_their_volume_or_nothing_is() {
    let node = Node::create(&medium(16));
    let id = node.create_volume("v", 100);
    let (a, b) = (node.snapshot(id, "v@a"), node.snapshot(id, "v@b"));
    // Called otherwise, of another one, or of what only begins like it.
    node.snapshot(id, "free");
    let longer = node.create_volume("v2", 100);
    node.snapshot(longer, "v2@a");
    let clone = clone_of(&node, a, "v@clone");
    rename(&node, id, "w").unwrap();
    let expected = ["free", "v2", "v2@a", "v@clone", "w", "w@a", "w@b"];
    assert_eq!(names(&node), expected);
    assert_eq!(
        (node.pool.find("w@b"), node.pool.find("v@b")),
        (Some(b), None)
    );
    assert_eq!(node.pool.origin_of(clone), Some(a));
    // One of the names is another's, or longer than a name may be.
    assert_eq!(rename(&node, longer, "w"), Err(PoolError::Exists));
    node.create_volume("x@b", 100);
    assert_eq!(rename(&node, id, "x"), Err(PoolError::Exists));
    let long: &'static str = "l".repeat(254).leak();
    assert_eq!(rename(&node, id, long), Err(PoolError::BadName));
    assert!(expected.iter().all(|name| node.pool.find(name).is_some()));
    // A snapshot of the clone that took it over has kept the name it had.
    node.run(move |pool| async move { pool.promote(clone).await })
        .unwrap();
    rename(&node, id, "y").unwrap();
    assert!(
        ["w@a", "y@b"]
            .iter()
            .all(|name| node.pool.find(name).is_some())
    );
    node.checked();
}

#[test]
fn a_rename_that_the_power_cuts_short_is_finished_when_it_is_given_again() {
    const SNAPSHOTS: usize = 130;
    let base = Medium::new(BlockSize::B512, 64 << 20, true, 1);
    let node = Node::create(&base);
    let id = node.create_volume("v", 100);
    for number in 0..SNAPSHOTS {
        node.snapshot(id, &format!("v@{number}"));
    }
    node.run(|pool| async move { pool.close().await }).unwrap();
    drop(node);
    let amid = std::cell::Cell::new(0);
    each_cut(
        &base,
        6,
        |node| drop(rename(node, id, "w")),
        |node, ended| {
            let all = names(node);
            let done = all.iter().filter(|name| name.starts_with('w')).count();
            let whole = node.pool.find("w").is_some();
            assert!(whole || !ended);
            assert!(whole == (done == SNAPSHOTS + 1), "{done} are renamed");
            amid.set(amid.get() + u32::from(done > 0 && !whole));
            if !whole {
                rename(node, id, "w").unwrap();
            }
            let snapshots = node.pool.snapshots_of(id);
            for (number, (_, record)) in snapshots.iter().enumerate() {
                assert_eq!(record.name, format!("w@{number}"));
            }
            assert_eq!(
                (snapshots.len(), names(node).len()),
                (SNAPSHOTS, SNAPSHOTS + 1)
            );
        },
    );
    assert!(amid.get() > 0);
}
