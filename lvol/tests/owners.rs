//! Whose a pool is, and what moves with it: labels, owners, names, exports, destruction.

use crate::support::{
    Medium, Node, context,
    cuts::{each_cut, places},
    machine_named, named, options,
};
use corebay_conformance::TestCore;
use corebay_core::{disk::Durability, units::BlockSize};
use corebay_lvol::{
    Export, ImportOptions, NamespaceIds, Pool, PoolLabel, VolumeId, destroy, error::PoolError,
    probe,
};

fn medium() -> Medium {
    Medium::new(BlockSize::B512, 8 << 20, true, 1)
}

fn label(medium: &Medium) -> Result<PoolLabel, PoolError> {
    let core = TestCore::single();
    let (context, disk) = (context(&core), medium.open());
    core.run(async move { probe(&context, disk).await })
}

fn export(nsid: u32) -> Export {
    Export {
        subsystem: "nqn.2024-01.example:one".to_owned(),
        serial: "SN1".to_owned(),
        nsid,
        allow_any_host: false,
        hosts: vec!["nqn.2024-01.example:host".to_owned()],
    }
}

fn set_export(node: &Node, id: VolumeId, export: Option<Export>) -> Result<(), PoolError> {
    node.run(move |pool| async move { pool.set_export(id, export.as_ref()).await })
}

const IDS: NamespaceIds = NamespaceIds {
    uuid: [8; 16],
    nguid: [9; 16],
    eui64: [10; 8],
};

fn pool_of(machine: u8) -> (Medium, Node) {
    let medium = medium();
    let core = TestCore::single();
    let (context, disk) = (context(&core), medium.open());
    let owner = machine_named(machine);
    let made = core.run(async move { Pool::create_as(&context, disk, &options(), &owner).await });
    let node = Node {
        pool: made.unwrap(),
        core,
    };
    (medium, node)
}

#[test]
fn a_pool_is_its_machines_until_it_is_released() {
    let (medium, node) = pool_of(1);
    let first = label(&medium).unwrap();
    assert_eq!(first.owner, Some(machine_named(1)));
    assert_eq!(
        (&first.name[..], first.uuid, first.clean),
        ("pool", [7; 16], false)
    );
    assert_eq!((first.bytes, first.block_size), (8 << 20, BlockSize::B512));
    // It crashes; its own machine has it back, another one has not, and changes nothing.
    drop(node);
    medium.cut_power();
    let changes = medium.changes();
    let foreign = Node::import_as(&medium, 2, false).map(|_| ());
    assert_eq!(foreign, Err(PoolError::Foreign("machine 1".to_owned())));
    assert_eq!(medium.changes(), changes);
    let node = Node::import_as(&medium, 1, false).unwrap();
    node.run(|pool| async move { pool.close().await }).unwrap();
    assert!(label(&medium).unwrap().clean);
    // Closed is not released.
    assert!(Node::import_as(&medium, 2, false).is_err());
    let node = Node::import_as(&medium, 1, false).unwrap();
    assert!(!label(&medium).unwrap().clean);
    node.run(|pool| async move { pool.release().await })
        .unwrap();
    let released = label(&medium).unwrap();
    assert_eq!((released.owner, released.clean), (None, true));
    let node = Node::import_as(&medium, 2, false).unwrap();
    assert_eq!(node.pool.owner(), Some(machine_named(2)));
    drop(node);
    // By force it changes hands also without that.
    let node = Node::import_as(&medium, 3, true).unwrap();
    assert_eq!(label(&medium).unwrap().owner, Some(machine_named(3)));
    drop(node);
    assert!(Node::import_as(&medium, 2, false).is_err());
}

#[test]
fn a_pool_in_use_is_not_released() {
    let (medium, node) = pool_of(1);
    let id = node.create_volume("v", 10);
    let volume = node.open(id);
    let refused = node.run(|pool| async move { pool.release().await });
    assert_eq!(refused, Err(PoolError::Busy));
    let refused = node.run(|pool| async move { pool.destroy("pool").await });
    assert_eq!(refused, Err(PoolError::Busy));
    node.write(&volume, 0, 1, 1, Durability::Durable).unwrap();
    assert_eq!(label(&medium).unwrap().owner, Some(machine_named(1)));
}

#[test]
fn exports_move_with_the_pool() {
    let (medium, node) = pool_of(1);
    let (a, b) = (node.create_volume("a", 10), node.create_volume("b", 10));
    assert_eq!(node.pool.free_nsid("nqn.2024-01.example:one"), 1);
    set_export(&node, a, Some(export(1))).unwrap();
    assert_eq!(node.pool.free_nsid("nqn.2024-01.example:one"), 2);
    assert_eq!(
        set_export(&node, b, Some(export(1))),
        Err(PoolError::Exists)
    );
    assert_eq!(
        set_export(&node, b, Some(export(0))),
        Err(PoolError::BadExport)
    );
    set_export(&node, b, Some(export(5))).unwrap();
    set_export(&node, b, Some(export(5))).unwrap();
    node.run(move |pool| async move { pool.set_namespace_ids(a, &IDS).await })
        .unwrap();
    // What is made of it is another namespace.
    let snapshot = node.snapshot(a, "s");
    let record = node.pool.volume(snapshot).unwrap();
    assert_eq!((record.export, record.nguid), (None, [0; 16]));
    // A deleted one leaves its number to others, also while its space is given back.
    node.run(move |pool| async move { pool.delete(b).await })
        .unwrap();
    let c = node.create_volume("c", 10);
    set_export(&node, c, Some(export(5))).unwrap();
    node.run(move |pool| async move { pool.roll_back(a, snapshot).await })
        .unwrap();
    for close in [false, true] {
        if close {
            let node = Node::import_as(&medium, 1, false).unwrap();
            node.run(|pool| async move { pool.release().await })
                .unwrap();
        }
        let node = Node::import_as(&medium.copy(1), if close { 2 } else { 1 }, false).unwrap();
        let exports = node.pool.exports();
        let found: Vec<_> = exports
            .iter()
            .map(|(id, record, export)| (*id, &record.name[..], export.clone()))
            .collect();
        assert_eq!(found, [(a, "a", export(1)), (c, "c", export(5))]);
        let record = node.pool.volume(a).unwrap();
        let NamespaceIds { uuid, nguid, eui64 } = IDS;
        assert_eq!(
            (record.uuid, record.nguid, record.eui64),
            (uuid, nguid, eui64)
        );
        set_export(&node, a, None).unwrap();
        assert_eq!(node.pool.exports().len(), 1);
        node.checked();
    }
}

#[test]
fn a_pool_is_destroyed_only_by_its_name() {
    let (medium, node) = pool_of(1);
    let refused = node.run(|pool| async move { pool.destroy("poo").await });
    assert_eq!(refused, Err(PoolError::NotFound));
    let away = |medium: &Medium, name: &'static str, machine: u8| {
        let core = TestCore::single();
        let (context, disk) = (context(&core), medium.open());
        let options = ImportOptions {
            owner: Some(machine_named(machine)),
            force: false,
        };
        core.run(async move { destroy(&context, disk, name, &options).await })
    };
    drop(node);
    assert_eq!(away(&medium, "other", 1), Err(PoolError::NotFound));
    assert!(matches!(
        away(&medium, "pool", 2),
        Err(PoolError::Foreign(_))
    ));
    assert!(label(&medium).is_ok());
    let copy = medium.copy(1);
    assert_eq!(away(&copy, "pool", 1), Ok(()));
    assert_eq!(label(&copy), Err(PoolError::NotAPool));
    let node = Node::import_as(&medium, 1, false).unwrap();
    node.run(|pool| async move { pool.destroy("pool").await })
        .unwrap();
    for _ in 0..20 {
        node.core.turn();
    }
    assert_eq!(label(&medium), Err(PoolError::NotAPool));
}

#[test]
fn destroying_leaves_the_pool_or_nothing_when_the_power_fails() {
    let base = medium();
    let node = Node::create(&base);
    let volume = node.open(node.create_volume("v", 100));
    node.write(&volume, 0, 9, 3, Durability::Durable).unwrap();
    drop(volume);
    drop(node);
    let mut ends = [0, 0];
    for cut in places(120, 7) {
        let medium = base.copy(cut);
        let node = Node::import(&medium).unwrap();
        medium.stop_after(medium.changes() + cut);
        node.run(|pool| async move { pool.destroy("pool").await })
            .unwrap();
        let ended = !medium.has_stopped();
        medium.cut_power();
        match Node::import(&medium) {
            Ok(node) => {
                assert!(!ended);
                ends[0] += 1;
                let volume = node.open(node.pool.find("v").unwrap());
                assert_eq!(node.tags(&volume, 0, 10), [3, 3, 3, 3, 3, 3, 3, 3, 3, 0]);
                node.checked();
            }
            Err(error) => {
                assert_eq!(error, PoolError::NotAPool);
                ends[1] += 1;
            }
        }
    }
    assert!(ends[0] > 0 && ends[1] > 0, "{ends:?}");
}

#[test]
fn names_and_exports_are_old_or_new_when_the_power_fails() {
    let base = medium();
    let node = Node::create(&base);
    node.create_volume("v", 100);
    drop(node);
    each_cut(
        &base,
        5,
        |node| {
            let id = node.pool.find("v").unwrap();
            set_export(node, id, Some(export(3))).unwrap();
            node.run(move |pool| async move {
                pool.set_namespace_ids(id, &IDS).await?;
                pool.rename_pool("tank").await
            })
            .unwrap();
        },
        |node, ended| {
            let record = node.pool.volume(node.pool.find("v").unwrap()).unwrap();
            let steps = [
                record.export == Some(export(3)),
                record.nguid == IDS.nguid,
                node.pool.name() == "tank",
            ];
            // One after the other, and all of them once they were answered.
            assert!(steps.is_sorted_by(|a, b| a >= b), "{steps:?}");
            assert!(!ended || steps[2]);
            assert!(record.export.is_none() || steps[0]);
            assert!(steps[1] || (record.nguid, record.uuid) == ([0; 16], named("v").uuid));
        },
    );
}

#[test]
fn a_pool_of_the_first_version_is_read_and_written_in_the_usual_one() {
    use corebay_lvol::format::{PAGE_BYTES, SUPERBLOCK_AT, VERSION_USUAL, crc32c};
    let medium = medium();
    let node = Node::create(&medium);
    node.create_volume("v", 10);
    node.run(|pool| async move { pool.close().await }).unwrap();
    drop(node);
    for at in SUPERBLOCK_AT {
        let mut page = medium.bytes(at, PAGE_BYTES as u64);
        page[8] = 1;
        page[92..96].fill(0);
        page[352..512].fill(0);
        page[12..16].fill(0);
        let crc = crc32c(&page[..512]).to_le_bytes();
        page[12..16].copy_from_slice(&crc);
        medium.overwrite(at, &page);
    }
    let node = Node::import_as(&medium, 1, false).unwrap();
    assert_eq!(node.pool.volumes().len(), 1);
    assert_eq!(u32::from(medium.bytes(0, 512)[8]), VERSION_USUAL);
}
