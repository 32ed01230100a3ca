//! Every file in conf/examples is right, and says what its comments say.

mod support;

use std::path::{Path, PathBuf};

use corebay_conf::appliance::{
    Access, BlockSize, Consistency, Digest, DiskKind, Hugepages, Level, LogFormat, Store,
};
use corebay_conf::{Appliance, Size, parse, render_all};
use support::FakeMachine;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

fn example(name: &str) -> Appliance {
    let text = std::fs::read_to_string(folder().join(name)).unwrap();
    match parse(&text, name, &FakeMachine::large()) {
        Ok((appliance, warnings)) if warnings.is_empty() => appliance,
        Ok((_, diagnostics)) | Err(diagnostics) => panic!("{}", render_all(&diagnostics, false)),
    }
}

#[test]
fn every_example_is_right() {
    let files = std::fs::read_dir(folder()).unwrap();
    let names: Vec<String> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.len() >= 6, "{names:?}");
    for name in names {
        example(&name);
    }
}

#[test]
fn line_ends_of_other_systems() {
    let text = std::fs::read_to_string(folder().join("two-hosts.toml")).unwrap();
    let text = format!("\u{feff}{}", text.replace('\n', "\r\n"));
    assert!(parse(&text, "two-hosts.toml", &FakeMachine::large()).is_ok());
}

#[test]
fn the_first_core_is_one_that_the_process_may_use() {
    let text = std::fs::read_to_string(folder().join("minimal.toml")).unwrap();
    let mut machine = FakeMachine::large();
    machine.first_core = 5;
    let (appliance, _) = parse(&text, "minimal.toml", &machine).unwrap();
    assert_eq!(appliance.reactor().cores, [5]);
    let named = format!("{text}\n[reactor]\ncores = [0]\n");
    assert!(parse(&named, "minimal.toml", &machine).is_err());
}

#[test]
fn minimal() {
    let appliance = example("minimal.toml");
    assert_eq!(appliance.data_dir(), Path::new("./corebay-data"));
    assert_eq!(appliance.reactor().cores, [0]);
    let listener = &appliance.listeners()[0];
    assert!(listener.discovery && listener.subsystems);
    let subsystem = &appliance.subsystems()[0];
    assert_eq!(subsystem.access, Access::AnyHost);
    assert_eq!(subsystem.model.as_str(), "corebay");
    assert_eq!(subsystem.serial.as_str().len(), 18);
    let Store::Disk(disk) = subsystem.namespaces[0].store else {
        panic!()
    };
    let disk = appliance.disk(disk);
    let kind = DiskKind::File {
        path: "corebay-data/minimal.img".into(),
        size: Some(Size::GIB.times(8)),
        create: true,
    };
    assert_eq!(disk.kind, kind);
    assert_eq!(disk.block_size, None);
}

#[test]
fn two_hosts() {
    let appliance = example("two-hosts.toml");
    let [alpha, beta, software] = appliance.subsystems() else {
        panic!()
    };
    let host = "nqn.2014-08.org.nvmexpress:uuid:8c0a1a52-6f3c-4a5e-9f0b-2d6f0f1b7a11";
    assert!(alpha.access.allows(host) && software.access.allows(host));
    assert!(!beta.access.allows(host));
    assert!(software.namespaces[0].read_only);
    assert_eq!(alpha.namespaces[1].nsid, 2);
    assert_eq!(appliance.store_name(alpha.namespaces[1].store), "alpha-log");
}

#[test]
fn many_listeners() {
    let appliance = example("many-listeners.toml");
    let [first, second] = appliance.subsystems() else {
        panic!()
    };
    let indices = |subsystem: &corebay_conf::appliance::Subsystem| {
        subsystem
            .listeners
            .iter()
            .map(|id| id.index())
            .collect::<Vec<_>>()
    };
    assert_eq!(indices(first), [0, 1]);
    assert_eq!(indices(second), [2]);
    assert!(!appliance.listener(second.listeners[0]).discovery);
    assert!(appliance.referrals()[0].nqn.is_discovery());
}

#[test]
fn kernel_block_devices() {
    let appliance = example("kernel-block-devices.toml");
    assert_eq!(appliance.disks()[0].block_size, None);
    assert_eq!(appliance.disks()[1].block_size, Some(BlockSize::B4096));
    let nsids: Vec<u32> = appliance.subsystems()[0]
        .namespaces
        .iter()
        .map(|namespace| namespace.nsid)
        .collect();
    assert_eq!(nsids, [1, 2, 10]);
}

#[test]
fn nvme_drives() {
    let appliance = example("nvme-drives.toml");
    let drives: Vec<String> = appliance
        .disks()
        .iter()
        .map(|disk| match &disk.kind {
            DiskKind::Nvme { drive, nsid } => format!("{drive} {nsid:?}"),
            _ => panic!("another kind"),
        })
        .collect();
    assert_eq!(
        drives,
        [
            "0000:01:00.0 None",
            "serial number S64HNE0R500001 Some(2)",
            "0025385b71b0a4f9 None",
        ]
    );
    assert_eq!(appliance.reactor().hugepages, Hugepages::Require);
}

#[test]
fn ram_bench() {
    let appliance = example("ram-bench.toml");
    assert_eq!(appliance.reactor().idle_sleep, None);
    let minimal = example("minimal.toml");
    assert_eq!(
        appliance.tcp(),
        minimal.tcp(),
        "the defaults are written out"
    );
}

#[test]
fn multi_core() {
    let appliance = example("multi-core.toml");
    assert_eq!(appliance.reactor().cores, [2, 3, 4, 5]);
    assert_eq!(appliance.reactor().hugepages, Hugepages::Require);
    assert_eq!(appliance.tcp().data_digest, Digest::Require);
    assert_eq!(appliance.log().format, LogFormat::Json);
    let [first, second] = appliance.subsystems()[0].namespaces.as_slice() else {
        panic!()
    };
    assert_eq!(
        first.uuid,
        appliance.disks()[0].uuid,
        "the disk's identity is its namespace's"
    );
    assert_eq!(
        second.eui64.unwrap().bytes(),
        [0x00, 0x25, 0x38, 0x5b, 0x71, 0xb0, 0x00, 0x01]
    );
}

#[test]
fn raid() {
    let appliance = example("raid.toml");
    let [bulk, fast] = appliance.arrays() else {
        panic!()
    };
    assert_eq!((bulk.level, bulk.members.len()), (Level::Raid6, 6));
    assert_eq!(appliance.disk(bulk.spares[0]).name, "bay-7");
    assert_eq!(bulk.strip, Size::KIB.times(128));
    assert_eq!(bulk.consistency, Consistency::Journal);
    assert_eq!((bulk.zone, fast.zone), (Some(Size::MIB.times(8)), None));
    assert_eq!(bulk.rebuild_ceiling, Some(Size::MIB.times(400)));
    assert_eq!((bulk.patience, fast.patience), Default::default());
    assert!(bulk.create && !fast.create);
    assert_eq!(
        (fast.level, fast.strip),
        (Level::Mirrored, Size::KIB.times(64))
    );
    let store = appliance.subsystems()[0].namespaces[1].store;
    assert_eq!(appliance.store_name(store), "fast");
}

#[test]
fn pool() {
    let appliance = example("pool.toml");
    let [fast, bulk] = appliance.pools() else {
        panic!()
    };
    assert_eq!(appliance.store_name(fast.store), "mirror");
    assert_eq!((fast.warn_at, fast.critical_at), (Some(85), Some(95)));
    assert!(fast.create && bulk.warn_at.is_none());
    assert_eq!(appliance.store_name(bulk.store), "bay-3");
    let store = appliance.subsystems()[0].namespaces[0].store;
    assert_eq!(appliance.store_name(store), "bulk/archive");
}
