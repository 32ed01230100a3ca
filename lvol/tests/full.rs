//! Pools that are full: nothing that is asked of one makes it end, or keeps it from being opened again.

use std::{cell::Cell, rc::Rc};

use crate::support::{Medium, Node, named};
use corebay_conformance::TestCore;
use corebay_core::{
    disk::{Disk, DiskError, Durability},
    mesh::Wakeups,
    reactor::MachineClock,
    units::{BlockSize, Lba},
};
use corebay_lvol::{PoolCore, Volume, VolumeId, error::PoolError};

const PER_EXTENT: u64 = 256;

/// Extents of a volume whose maps lie in leaves of their own.
const APART: u64 = 64 * PER_EXTENT;

fn medium(mib: u64) -> Medium {
    Medium::new(BlockSize::B512, mib << 20, false, 1)
}

/// Writes two blocks to each leaf, until none are taken. How many leaves there are.
fn fill(node: &Node, id: VolumeId) -> u64 {
    let volume = node.open(id);
    let mut written = 0;
    while node
        .write(&volume, written * APART, 2, 1, Durability::Cached)
        .is_ok()
    {
        written += 1;
    }
    written
}

/// The pool as it is after its appliance has been killed.
fn killed(node: Node, medium: &Medium) -> Node {
    drop(node);
    Node::import(medium).expect("it is opened again")
}

#[test]
fn a_full_pool_takes_as_many_volumes_as_it_can_write_down() {
    let medium = medium(16);
    let mut node = Node::create(&medium);
    let thin = node.create_volume("thin", 1 << 22);
    let thick = node
        .run(|pool| async move {
            pool.create_volume(&named("thick"), 16 * PER_EXTENT, true)
                .await
        })
        .unwrap();
    let written = fill(&node, thin);
    assert!(written > 40, "{written}");
    let (mut made, mut refused) = (0, 0);
    for number in 0..300 {
        let name = format!("e{number}");
        let answer = node.run(move |pool| async move {
            match number % 3 {
                0 => pool.clone_volume(thin, &named(&name)).await,
                1 => {
                    let taken = pool.snapshot(&[(thin, named(&name))]).await;
                    taken.map(|ids| ids[0])
                }
                _ => pool.create_volume(&named(&name), 9, false).await,
            }
        });
        match answer {
            Ok(_) => made += 1,
            Err(PoolError::NoSpace) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        if number % 10 == 0 {
            node.checkpoint();
        }
        if number % 50 == 49 {
            node = killed(node, &medium);
        }
    }
    assert!(made > 3 && refused > 100, "{made} made, {refused} refused");
    // All that needs no more is served, and what was reserved is there.
    let volume = node.open(thick);
    for extent in 0..16 {
        let at = extent * PER_EXTENT;
        node.write(&volume, at, 1, 3, Durability::Cached).unwrap();
        node.write(&volume, at + 9, 1, 4, Durability::Cached)
            .unwrap();
    }
    node.checkpoint();
    drop(volume);
    let node = killed(node, &medium);
    let volume = node.open(thin);
    assert_eq!(node.tags(&volume, (written - 1) * APART, 3), [1, 1, 0]);
    drop(volume);
    // Space comes back.
    for (id, record) in node.pool.volumes() {
        if record.name != "thick" {
            node.run(move |pool| async move { pool.delete(id).await })
                .unwrap();
        }
    }
    node.settle();
    node.create_volume("again", 1 << 22);
    node.checked();
}

#[test]
fn what_is_reserved_stays_so_though_records_of_all_kinds_share_their_batches() {
    // Large enough that room for metadata is looked for ahead.
    let medium = medium(2048);
    let node = Node::create(&medium);
    let thin = node.create_volume("thin", 1 << 24);
    let volume = node.open(thin);
    for leaf in 0..300 {
        let at = leaf * APART;
        node.write(&volume, at, 2, 1, Durability::Cached).unwrap();
    }
    drop(volume);
    let extents = node.pool.status().available_bytes / (PER_EXTENT * 512) - 4;
    let thick = node.run(move |pool| async move {
        let blocks = extents * PER_EXTENT;
        pool.create_volume(&named("thick"), blocks, true).await
    });
    let thick = node.open(thick.unwrap());
    // New blocks of extents that it has, by another core: most batches begin with a record of these.
    let id = node.pool.find("thick").unwrap();
    let handle = node.pool.share(2, Wakeups::None).unwrap();
    let other = TestCore::new(1, MachineClock::new());
    let part = PoolCore::open(&handle, &other.reactor, medium.open()).unwrap();
    let far = Volume::open(&part, &node.pool.volume_handle(id).unwrap());
    let far = Rc::new(far.unwrap());
    let stop = Rc::new(Cell::new(false));
    for writer in 0..4 {
        let (disk, stop, buffer) = (far.clone(), stop.clone(), other.filled(&[5; 512]));
        other.spawn(async move {
            let buffers = std::slice::from_ref(&buffer);
            for at in writer * 60 * PER_EXTENT..(writer + 1) * 60 * PER_EXTENT {
                if stop.get() {
                    break;
                }
                let written = disk.write(Lba(at), buffers, Durability::Cached).await;
                written.unwrap();
            }
        });
    }
    let (mut made, mut refused) = (0, 0);
    for round in 0..1200 {
        let pool = node.pool.clone();
        let taken = node.core.spawn(async move {
            let taken = pool.snapshot(&[(thin, named(&format!("s{round}")))]).await;
            let volume = pool.open(thin).expect("the volume");
            let cleared = volume.deallocate(Lba(round % 300 * APART), 1).await;
            (taken.map(drop), cleared)
        });
        node.core.turn_until("the end of both", || {
            other.turn();
            taken.is_there()
        });
        match taken.take() {
            (Err(PoolError::NoSpace), _) | (_, Err(DiskError::NoSpace)) => refused += 1,
            (Ok(()), Ok(())) => made += 1,
            other => panic!("{other:?}"),
        }
    }
    stop.set(true);
    for _ in 0..100 {
        other.turn();
        node.core.turn();
    }
    drop((far, part));
    assert!(refused > 10, "{made} made, {refused} refused");
    assert!(!node.pool.status().failed);
    for extent in 0..extents {
        let written = node.write(&thick, extent * PER_EXTENT, 1, 3, Durability::Cached);
        assert_eq!(written, Ok(()), "extent {extent} of {extents}");
    }
}

#[test]
fn a_full_pool_copies_no_more_of_a_shared_map_than_it_can_write_down() {
    let medium = medium(32);
    let mut node = Node::create(&medium);
    let id = node.create_volume("thin", 1 << 23);
    let written = fill(&node, id);
    assert!(written > 150, "{written}");
    node.snapshot(id, "s");
    let (mut done, mut refused) = (0, 0);
    for leaf in 0..written {
        let volume = node.open(id);
        let cleared = node
            .core
            .run(async move { volume.deallocate(Lba(leaf * APART), 1).await });
        match cleared {
            Ok(()) => done += 1,
            Err(DiskError::NoSpace) => refused += 1,
            Err(error) => panic!("{error:?}"),
        }
        if leaf % 16 == 0 {
            node.checkpoint();
        }
        if leaf % 64 == 63 {
            node = killed(node, &medium);
        }
    }
    assert!(done > 3 && refused > 3, "{done} done, {refused} refused");
    let volume = node.open(id);
    for leaf in 0..written {
        let tag = node.tags(&volume, leaf * APART, 1)[0];
        assert!(tag <= 1);
    }
    drop(volume);
    let snapshot = node.pool.find("s").unwrap();
    node.run(move |pool| async move { pool.delete(snapshot).await })
        .unwrap();
    node.settle();
    let volume = node.open(id);
    for leaf in 0..written {
        node.deallocate(&volume, leaf * APART, 1);
    }
    drop(volume);
    killed(node, &medium).checked();
}

#[test]
fn many_first_writes_at_once_fill_a_pool_and_do_not_end_it() {
    let medium = medium(48);
    let node = Node::create(&medium);
    let id = node.create_volume("thin", 1 << 24);
    let ends: Vec<_> = (0..400)
        .map(|leaf| {
            let volume = node.open(id);
            let buffer = node.core.filled(&[5; 512]);
            node.core.spawn(async move {
                let at = Lba(leaf * APART);
                volume.write(at, &[buffer], Durability::Cached).await
            })
        })
        .collect();
    let mut refused = 0;
    for end in ends {
        node.core.turn_until("a write's end", || end.is_there());
        match end.take() {
            Ok(()) => {}
            Err(DiskError::NoSpace) => refused += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(refused > 0);
    node.checkpoint();
    let node = killed(node, &medium);
    node.checkpoint();
    node.checked();
}

/// They hold extents that are reserved for the volume as well, until their records have taken effect.
#[test]
fn a_full_pool_takes_space_back_beside_first_writes_of_a_thick_volume() {
    let medium = medium(32);
    let node = Node::create(&medium);
    let thick = node
        .run(|pool| async move {
            pool.create_volume(&named("thick"), 80 * PER_EXTENT, true)
                .await
        })
        .unwrap();
    let volume = node.open(thick);
    for extent in 0..20 {
        let at = extent * PER_EXTENT;
        node.write(&volume, at, 9, 1, Durability::Cached).unwrap();
    }
    drop(volume);
    // What is cleared adds pages to the map.
    node.snapshot(thick, "snapshot");
    fill(&node, node.create_volume("thin", 1 << 22));
    drop(node);
    let node = Node::import_slow(&medium);
    let volume = node.open(thick);
    let writes: Vec<_> = (20..80)
        .map(|extent| {
            let (volume, buffer) = (volume.clone(), node.core.filled(&[5; 512]));
            node.core.spawn(async move {
                let at = Lba(extent * PER_EXTENT);
                volume.write(at, &[buffer], Durability::Cached).await
            })
        })
        .collect();
    let cleared: Vec<_> = (0..20)
        .map(|extent| {
            let volume = volume.clone();
            let at = Lba(extent * PER_EXTENT + 2);
            node.core
                .spawn(async move { volume.deallocate(at, 3).await })
        })
        .collect();
    for end in writes.into_iter().chain(cleared) {
        node.core.turn_until("an end", || end.is_there());
        assert_eq!(end.take(), Ok(()));
    }
    drop(volume);
    node.checked();
}
