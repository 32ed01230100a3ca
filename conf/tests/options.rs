//! The appliance of the command line, and files that cannot be read.

mod support;

use std::path::Path;

use corebay_conf::appliance::{Access, Appliance, BlockSize, DiskKind, Store};
use corebay_conf::machine::PathState;
use corebay_conf::{Nqn, Options, Size, load, render_all};
use support::FakeMachine;

fn kept() -> Nqn {
    "nqn.2014-08.org.nvmexpress:uuid:8c0a1a52-6f3c-4a5e-9f0b-2d6f0f1b7a11"
        .parse()
        .unwrap()
}

#[track_caller]
fn right(options: &Options, machine: &FakeMachine) -> Appliance {
    let (appliance, warnings) = Appliance::from_options(options, &kept(), machine)
        .unwrap_or_else(|diagnostics| panic!("{}", render_all(&diagnostics, false)));
    assert!(warnings.is_empty(), "{}", render_all(&warnings, false));
    appliance
}

#[track_caller]
fn wrong(options: &Options, fragments: &[&str]) {
    let outcome = Appliance::from_options(options, &kept(), &FakeMachine::new());
    let shown = render_all(&outcome.unwrap_err(), false);
    for fragment in fragments {
        assert!(shown.contains(fragment), "`{fragment}` is not in:\n{shown}");
    }
}

#[test]
fn without_any_option() {
    let appliance = right(&Options::default(), &FakeMachine::new());
    assert_eq!(appliance.data_dir(), Path::new("./corebay-data"));
    assert_eq!(appliance.reactor().cores, [0]);
    let [main, discovery] = appliance.listeners() else {
        panic!()
    };
    assert_eq!(main.address, "127.0.0.1:4420".parse().unwrap());
    assert!(main.discovery && main.subsystems);
    assert_eq!(discovery.address, "127.0.0.1:8009".parse().unwrap());
    assert!(discovery.discovery && !discovery.subsystems);
    let [subsystem] = appliance.subsystems() else {
        panic!()
    };
    assert_eq!(subsystem.nqn, kept());
    assert_eq!(subsystem.access, Access::AnyHost);
    assert_eq!(subsystem.listeners.len(), 1);
    let [disk] = appliance.disks() else { panic!() };
    assert_eq!(disk.block_size, None, "what the medium keeps whole");
    let size = Size::from_bytes((16 << 30) + (64 << 20));
    let expected = DiskKind::File {
        path: "corebay-data/pool-1.img".into(),
        size: Some(size),
        create: true,
    };
    assert_eq!(disk.kind, expected);
    let [pool] = appliance.pools() else { panic!() };
    assert_eq!(appliance.store_name(pool.store), "disk-1");
    assert!(pool.create);
    let first = Some(("volume-1".to_owned(), Size::GIB.times(8)));
    assert_eq!(pool.first_volume, first);
    assert!(
        subsystem.namespaces.is_empty(),
        "the pool knows its exports"
    );
}

#[test]
fn a_first_start_that_was_cut_off_is_made_good() {
    let mut machine = FakeMachine::new();
    machine.file("corebay-data/disk-1.img", 0);
    let appliance = right(&Options::default(), &machine);
    let DiskKind::File { size, create, .. } = appliance.disks()[0].kind else {
        panic!()
    };
    assert_eq!((size, create), (Some(Size::GIB.times(8)), true));
}

#[test]
fn a_second_start_takes_the_file_as_it_is() {
    let mut machine = FakeMachine::new();
    machine
        .paths
        .insert("corebay-data".into(), PathState::Folder);
    machine.file("corebay-data/disk-1.img", 2 << 30);
    let appliance = right(&Options::default(), &machine);
    let DiskKind::File { size, create, .. } = &appliance.disks()[0].kind else {
        panic!()
    };
    assert_eq!((*size, *create), (None, true));
    // What was served before there were pools is served as it was.
    assert!(appliance.pools().is_empty());
    assert_eq!(appliance.subsystems()[0].namespaces.len(), 1);
}

#[test]
fn a_second_start_takes_the_pool_as_it_is() {
    let mut machine = FakeMachine::new();
    machine
        .paths
        .insert("corebay-data".into(), PathState::Folder);
    machine.file("corebay-data/pool-1.img", 2 << 30);
    let appliance = right(&Options::default(), &machine);
    let DiskKind::File { path, size, .. } = &appliance.disks()[0].kind else {
        panic!()
    };
    assert_eq!(path, Path::new("corebay-data/pool-1.img"));
    assert_eq!((*size, appliance.pools().len()), (None, 1));
}

#[test]
fn disks_become_namespaces_in_order() {
    let specs = [
        "ram:1GiB,block=512",
        "null:1TiB",
        "/dev/nvme2n1",
        "file:data/a.img,size=1MiB",
    ];
    let options = Options {
        disks: specs.map(|spec| spec.parse().unwrap()).to_vec(),
        listen: ["127.0.0.1:0", "[::1]:0"]
            .map(|address| address.parse().unwrap())
            .to_vec(),
        discovery: Vec::new(),
        nqn: Some("nqn.2024-01.com.example:mine".parse().unwrap()),
        ..Options::default()
    };
    let appliance = right(&options, &FakeMachine::new());
    let subsystem = &appliance.subsystems()[0];
    assert_eq!(subsystem.nqn.as_str(), "nqn.2024-01.com.example:mine");
    for (at, namespace) in subsystem.namespaces.iter().enumerate() {
        assert_eq!(
            (namespace.nsid as usize, index(namespace.store)),
            (at + 1, at)
        );
    }
    let blocks: Vec<_> = appliance
        .disks()
        .iter()
        .map(|disk| disk.block_size)
        .collect();
    let default = Some(BlockSize::B4096);
    assert_eq!(blocks, [Some(BlockSize::B512), default, None, None]);
}

#[test]
fn discovery_asked_for_twice_is_no_mistake() {
    let options = Options {
        discovery: Options::default().listen,
        ..Options::default()
    };
    assert_eq!(right(&options, &FakeMachine::new()).listeners().len(), 1);
}

#[test]
fn the_first_core_is_one_that_the_process_may_use() {
    let mut machine = FakeMachine::new();
    machine.first_core = 2;
    let appliance = right(&Options::default(), &machine);
    assert_eq!(appliance.reactor().cores, [2]);
    let said = Options {
        cores: vec![0],
        ..Options::default()
    };
    let shown = Appliance::from_options(&said, &kept(), &machine).unwrap_err();
    let shown = render_all(&shown, false);
    assert!(shown.contains("may not run on core 0"), "{shown}");
}

#[test]
fn mistakes_point_into_the_options() {
    let options = Options {
        cores: vec![0, 9],
        ..Options::default()
    };
    let shown = Appliance::from_options(&options, &kept(), &FakeMachine::new()).unwrap_err();
    let expected = "\
error: this machine has no core 9
 --> command line:6:9
  |
6 | --cores 9
  |         ^
  |
  = help: the cores that it may use are 0-2

command line: 1 error
";
    assert_eq!(render_all(&shown, false), expected);
}

#[test]
fn options_are_held_to_the_rules_of_files() {
    let disks = |specs: &[&str]| Options {
        disks: specs.iter().map(|spec| spec.parse().unwrap()).collect(),
        ..Options::default()
    };
    wrong(
        &disks(&["/dev/nvme2n1", "/dev/nvme2n1"]),
        &[
            "two disks are made of `/dev/nvme2n1`",
            "--disk /dev/nvme2n1",
        ],
    );
    wrong(
        &disks(&["file:gone/a.img"]),
        &["the folder `gone` does not exist"],
    );
    wrong(
        &disks(&["ram:1000"]),
        &["1000 bytes are no whole number of blocks of 4096 bytes"],
    );
    wrong(
        &Options {
            size: Size::from_bytes(0),
            ..Options::default()
        },
        &["a disk cannot have 0 bytes", "--size 0B"],
    );
    wrong(
        &Options {
            cores: vec![0; 300],
            ..Options::default()
        },
        &["300 times --cores is too many"],
    );
    let twice = Options {
        listen: vec!["127.0.0.1:4420".parse().unwrap(); 2],
        ..Options::default()
    };
    wrong(&twice, &["there are two listeners on 127.0.0.1:4420"]);
    let multicast = Options {
        listen: vec!["224.0.0.1:4420".parse().unwrap()],
        ..Options::default()
    };
    wrong(&multicast, &["a multicast or broadcast address"]);
    let nqn = Some(Nqn::discovery());
    wrong(
        &Options {
            nqn,
            ..Options::default()
        },
        &["this is the NQN of the discovery service"],
    );
}

#[test]
fn a_warning_where_others_can_connect() {
    let options = Options {
        listen: vec!["0.0.0.0:4420".parse().unwrap()],
        ..Options::default()
    };
    let outcome = Appliance::from_options(&options, &kept(), &FakeMachine::new());
    let shown = render_all(&outcome.unwrap().1, false);
    assert!(
        shown.contains("warning: every host that reaches 0.0.0.0:4420 may connect"),
        "{shown}"
    );
}

#[test]
fn files_that_cannot_be_read() {
    let machine = FakeMachine::new();
    let shown = |path: &Path| render_all(&load(path, &machine).unwrap_err(), false);
    assert!(
        shown(Path::new("/nowhere.toml"))
            .contains("the configuration cannot be read: there is no such file")
    );
    assert!(shown(Path::new("/")).contains("the configuration cannot be read"));
    assert!(shown(Path::new("/dev/zero")).contains("the configuration is longer than 4MiB"));
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/minimal.toml");
    assert!(load(&example, &machine).is_ok());
    let folder = std::env::temp_dir().join(format!("corebay-conf-{}", std::process::id()));
    std::fs::write(&folder, b"a = 1\nb = \"\xFF\"\n").unwrap();
    let text = shown(&folder);
    std::fs::remove_file(&folder).unwrap();
    assert!(text.contains("line 2 is not UTF-8 text"), "{text}");
}

fn index(store: Store) -> usize {
    match store {
        Store::Disk(id) => id.index(),
        Store::Array(id) => id.index(),
        Store::Volume(_) => panic!("the command line names no volumes"),
    }
}
