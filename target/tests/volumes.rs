//! Pools and volumes as an operator and a host meet them: `corebay serve`, its command line, and our own
//! host over loopback, on ports that the system picks.
#![allow(
    clippy::disallowed_methods,
    reason = "a test of whole processes waits for them by the machine's clock"
)]

use std::{
    fs::{self, File},
    net::TcpStream,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

#[path = "volumes/exported.rs"]
mod exported;
#[path = "harness/mod.rs"]
mod harness;
#[path = "volumes/orders.rs"]
mod orders;
#[path = "harness/serving.rs"]
mod serving;

use corebay_nvme::spec::command::admin;
use harness::wire::{Connection, Payload};
use rustix::process::Signal;
use serde_json::{Value, json};
use serving::{PROGRAM, Serving, complaint, cores, free_port, text};
use tempfile::TempDir;

/// A running appliance, and the way to its control socket.
struct Appliance {
    serving: Serving,
    control: PathBuf,
}

impl Appliance {
    /// The default appliance in a data folder, or one with a configuration file in it.
    fn start(data: &Path) -> Self {
        let config = data.join("corebay.toml");
        let serving = match config.exists() {
            true => Serving::start_as(&["--config", text(&config)]),
            false => Serving::start(&["--data-dir", text(data), "--size", "64MiB"]),
        };
        let control = data.join("corebay.sock");
        Self { serving, control }
    }

    /// Runs a command of the command line; its JSON, or what it complains of.
    fn run(&self, line: &str) -> Result<Value, String> {
        let output = Command::new(PROGRAM)
            .args(line.split(' '))
            .args(["--control", text(&self.control), "-o", "json"])
            .output()
            .unwrap();
        match output.status.success() {
            true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
            false => Err(complaint(&output.stderr)),
        }
    }

    /// Runs several commands at once.
    fn at_once(&self, lines: &[&str]) -> Vec<Result<Value, String>> {
        std::thread::scope(|scope| {
            let begun = lines.iter().map(|line| scope.spawn(|| self.run(line)));
            let begun: Vec<_> = begun.collect();
            begun.into_iter().map(|one| one.join().unwrap()).collect()
        })
    }

    #[track_caller]
    fn does(&self, line: &str) -> Value {
        self.run(line).unwrap_or_else(|why| panic!("{line}: {why}"))
    }

    #[track_caller]
    fn refuses(&self, line: &str, because: &str) {
        let why = self.run(line).expect_err(line);
        assert!(why.contains(because), "{line}: {why}");
    }

    /// Our own host's errors on a namespace: none where all went well.
    fn bench(&self, nsid: u64, line: &str) -> Value {
        let nsid = nsid.to_string();
        let arguments: Vec<&str> = ["--nsid", &nsid]
            .into_iter()
            .chain(line.split(' '))
            .collect();
        self.serving.bench(&arguments)["errors"].clone()
    }

    #[track_caller]
    fn writes(&self, nsid: u64, seed: u32) {
        let line = format!(
            "--rw write --verify --overwrite --io-count 256 --span 1MiB --pattern sequential --seed {seed}"
        );
        assert_eq!(self.bench(nsid, &line), json!([]));
    }

    #[track_caller]
    fn reads(&self, nsid: u64, seed: u32) {
        let line = format!(
            "--rw read --verify --io-count 256 --span 1MiB --pattern sequential --seed {seed}"
        );
        assert_eq!(self.bench(nsid, &line), json!([]));
    }
}

/// A folder with a configuration: a pool on a small disk in memory and another disk, on two cores where
/// there are two.
fn configured(pool: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let cores = cores(2);
    let file = format!(
        "data_dir = \"{}\"\n[reactor]\ncores = {cores}\nmemory = \"256MiB\"\n[[listener]]\n\
         address = \"127.0.0.1:{}\"\n\
         [[disk]]\nname = \"a\"\nram = {{ size = \"24MiB\" }}\n\
         [[disk]]\nname = \"b\"\nram = {{ size = \"24MiB\" }}\n{pool}",
        text(folder.path()),
        free_port()
    );
    fs::write(folder.path().join("corebay.toml"), file).unwrap();
    folder
}

const POOL: &str = "[[pool]]\nname = \"p\"\ndisk = \"a\"\ncreate = true\nwarn_at = 50\n\
    [[subsystem]]\nnqn = \"nqn.2024-01.com.example:v\"\nallow_any_host = true\n\
    [[subsystem.namespace]]\nnsid = 7\nvolume = \"p/named\"\n";

/// NSZE, NCAP, NUSE, and NSFEAT's THINP.
fn sizes(admin: &mut Connection<TcpStream>, nsid: u32) -> ([u64; 3], bool) {
    let page = admin
        .command(admin::identify(0, nsid, 0), Payload::ToHost(4096))
        .ok();
    let number = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
    ([number(0), number(8), number(16)], page[24] & 1 == 1)
}

/// Waits for an event, which must be of a changed namespace; which ones have.
fn changed(admin: &mut Connection<TcpStream>, request: u16) -> Vec<u32> {
    let event = admin.complete(request).value() as u32;
    assert_eq!(event & 0xff_ffff, 0x04_0002, "Namespace Attribute Changed");
    let log = admin::get_log_page(4, u32::MAX, 0, 1024, false);
    let page = admin.command(log, Payload::ToHost(4096)).ok();
    let ids = page
        .chunks_exact(4)
        .map(|id| u32::from_le_bytes(id.try_into().unwrap()));
    ids.take_while(|id| *id != 0).collect()
}

#[test]
fn volumes_come_grow_and_go_while_a_host_is_connected() {
    let folder = tempfile::tempdir().unwrap();
    let appliance = Appliance::start(folder.path());
    let mut admin = appliance.serving.admin();
    let attributes = admin::set_features(0x0b, 0, 1 << 8);
    admin.command(attributes, Payload::None).ok();
    let request = admin.submit(admin::async_event_request(), Payload::None);
    let made = appliance.does("volume create v --size 32MiB --export");
    assert_eq!(made["export"]["nsid"], 2);
    assert_eq!(changed(&mut admin, request), [2]);
    let blocks = (32 << 20) / made["block_size"].as_u64().unwrap();
    let ([size, capacity, used], thin) = sizes(&mut admin, 2);
    assert_eq!((size, used, thin), (blocks, 0, true));
    assert!((1..=blocks).contains(&capacity), "{capacity}");
    appliance.writes(2, 1);
    appliance.does("snapshot create v@one volume-1@one");
    appliance.writes(2, 2);
    let clone = appliance.does("volume clone v@one c --export");
    assert_eq!(
        (&clone["origin"], &clone["export"]["nsid"]),
        (&json!("v@one"), &json!(3))
    );
    appliance.reads(3, 1);
    appliance.reads(2, 2);
    let request = admin.submit(admin::async_event_request(), Payload::None);
    appliance.does("volume resize v 64MiB");
    let resized = changed(&mut admin, request);
    assert!(resized.contains(&2), "{resized:?}");
    assert_eq!(sizes(&mut admin, 2).0[0], 2 * blocks);
    // Any snapshot goes, whatever was made of it.
    appliance.does("snapshot delete v@one");
    appliance.refuses("volume delete c", "it is exported");
    let request = admin.submit(admin::async_event_request(), Payload::None);
    appliance.does("volume delete c --force");
    assert_eq!(changed(&mut admin, request), [3]);
    appliance.reads(2, 2);
    appliance.refuses("volume rollback v volume-1@one", "no snapshot of");
    appliance.does("volume set v --read-only true");
    let refused = appliance
        .bench(2, "--rw write --overwrite --io-count 4")
        .to_string();
    assert!(refused.contains("Write Protected"), "{refused}");
    let good = appliance.does("pool check pool-1");
    assert_eq!((&good["good"], &good["volumes"]), (&json!(true), &json!(3)));
    drop(admin);
    appliance.serving.end();
}

#[test]
fn a_killed_appliance_finds_its_volumes_again() {
    let folder = tempfile::tempdir().unwrap();
    let first = Appliance::start(folder.path());
    first.does("volume create v --size 32MiB --export");
    first.writes(2, 5);
    first.does("snapshot create v@s");
    let (before, exports) = (first.does("volume list"), first.does("export list"));
    let nqn = first.serving.nqn().to_owned();
    first.serving.kill();
    let file = folder.path().join("pool-1.img");
    let check = Command::new(PROGRAM)
        .args(["pool", "check", "--offline", text(&file), "-o", "json"])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&check.stdout).unwrap();
    assert_eq!(
        (&report["good"], &report["volumes"]),
        (&json!(true), &json!(3))
    );
    let second = Appliance::start(folder.path());
    assert_eq!(second.serving.nqn(), nqn);
    assert_eq!(second.does("volume list"), before);
    assert_eq!(second.does("export list"), exports);
    second.reads(2, 5);
    second.serving.end();
}

#[test]
fn what_is_asked_for_again_is_answered_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let appliance = Appliance::start(folder.path());
    let twice = |line: &str| {
        let first = appliance.does(line);
        assert_eq!(appliance.does(line), first, "{line}");
        first
    };
    let volume = twice("volume create v --size 16MiB");
    let mut keys: Vec<&String> = volume.as_object().unwrap().keys().collect();
    keys.sort();
    let expected = [
        "block_size",
        "bytes",
        "export",
        "kind",
        "limits",
        "name",
        "origin",
        "pool",
        "read_only",
        "receiving_from_block",
        "thick",
        "used_bytes",
        "uuid",
    ];
    assert_eq!(keys, expected);
    appliance.refuses(
        "volume create v --size 32MiB",
        "there already: a thin volume of 16MiB",
    );
    appliance.refuses("volume create v --size 16MiB --thick", "there already");
    twice("snapshot create v@a volume-1@a");
    appliance.refuses("snapshot create v@a v@b", "not be of one point in time");
    appliance.refuses("snapshot delete nothing", "is no snapshot");
    twice("volume clone v@a c");
    appliance.refuses("volume clone volume-1 c", "there already");
    let exported = twice("export add v --host nqn.2024-01.com.example:h1");
    // Hosts are added one by one, as nodes of a cluster come.
    let more = twice("export add v --host nqn.2024-01.com.example:h2");
    assert_eq!(exported["export"]["subsystem"], more["export"]["subsystem"]);
    assert_eq!(more["export"]["hosts"].as_array().unwrap().len(), 2);
    appliance.refuses("export add v --nsid 9", "exported as namespace 1");
    // For programs: what kind of error it is.
    let refused = Command::new(PROGRAM)
        .args("volume show nothing -o json --control".split(' '))
        .arg(&appliance.control)
        .output()
        .unwrap();
    let error: Value = serde_json::from_slice(&refused.stderr).unwrap();
    let (code, kind) = (&error["error"]["code"], &error["error"]["kind"]);
    assert_eq!((code, kind), (&json!(-32004), &json!("missing")));
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0));
    twice("export remove v --host nqn.2024-01.com.example:h1");
    let last = twice("export remove v --host nqn.2024-01.com.example:h2");
    assert!(last["export"].is_null());
    twice("volume rename v w");
    twice("volume resize w 32MiB");
    appliance.refuses("volume resize w 16MiB", "--shrink");
    twice("volume resize w 16MiB --shrink");
    twice("volume delete c");
    assert_eq!(appliance.does("volume show w@a")["origin"], "w");
    appliance.refuses("volume rename w@a w@b", "is no name");
    twice("volume rename w pool-1/v");
    appliance.refuses("volume rename v q/w", "stays in its pool");
    appliance.does("export add v@a --allow-any-host");
    appliance.refuses("snapshot delete v@a", "--force");
    twice("snapshot delete v@a --force");
    appliance.refuses("volume show nothing", "there is no volume \"nothing\"");
    appliance.refuses("volume create a/b/c --size 1MiB", "there is no pool \"a\"");
    appliance.refuses("volume create x@y --size 1MiB", "is no name");
    twice("pool rename pool-1 q");
    let pools = appliance.does("pool list");
    assert_eq!(
        (&pools[0]["name"], &pools[0]["volumes"]),
        (&json!("q"), &json!(2))
    );
    appliance.serving.end();
}

#[test]
fn a_folder_from_before_pools_is_served_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk-1.img");
    fs::File::create(&file).unwrap().set_len(32 << 20).unwrap();
    let appliance = Appliance::start(folder.path());
    assert!(
        appliance.serving.said.contains("disk disk-1, uuid"),
        "{}",
        appliance.serving.said
    );
    appliance.writes(1, 3);
    assert_eq!(appliance.does("pool list"), json!([]));
    appliance.serving.end();
    assert!(!folder.path().join("pool-1.img").exists());
    let appliance = Appliance::start(folder.path());
    appliance.reads(1, 3);
    appliance.serving.end();
}

#[test]
fn a_first_start_that_was_cut_off_is_begun_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pool-1.img");
    fs::File::create(&file).unwrap().set_len(64 << 20).unwrap();
    // A pool of this appliance that was made, and opened again, and never had a volume.
    let config = folder.path().join("corebay.toml");
    let cores = format!("[reactor]\ncores = {}\nmemory = \"256MiB\"\n", cores(1));
    let disk = format!(
        "[[disk]]\nname = \"d\"\nfile = {{ path = \"{}\" }}\n",
        text(&file)
    );
    let pool = "[[pool]]\nname = \"pool-1\"\ndisk = \"d\"\ncreate = true\n";
    let listener = format!("[[listener]]\naddress = \"127.0.0.1:{}\"\n", free_port());
    let text = format!(
        "data_dir = \"{}\"\n{cores}{listener}{disk}{pool}",
        text(folder.path())
    );
    fs::write(&config, text).unwrap();
    for _ in 0..2 {
        let appliance = Appliance::start(folder.path());
        assert_eq!(appliance.does("volume list"), json!([]));
        appliance.serving.end();
    }
    fs::remove_file(&config).unwrap();
    let appliance = Appliance::start(folder.path());
    appliance.writes(1, 1);
    // A volume that was deleted does not come back.
    appliance.does("volume delete volume-1 --force");
    appliance.serving.end();
    let appliance = Appliance::start(folder.path());
    assert_eq!(appliance.does("volume list"), json!([]));
    appliance.serving.end();
}

#[test]
fn a_pool_brings_its_exports_to_another_machine() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = Appliance::start(here.path());
    first.writes(1, 8);
    let (nqn, exports) = (first.serving.nqn().to_owned(), first.does("export list"));
    first.serving.end();
    let file = |folder: &TempDir| folder.path().join("pool-1.img");
    fs::rename(file(&here), file(&there)).unwrap();
    let second = Appliance::start(there.path());
    let unavailable = second.does("pool list");
    assert_eq!(unavailable[0]["state"], "unavailable");
    second.refuses("pool import pool-1 --disk disk-1", "has not released it");
    second.does("pool import pool-1 --disk disk-1 --force");
    assert_eq!(second.does("export list"), exports);
    second.serving.end();
    let mut third = Appliance::start(there.path());
    assert!(third.serving.said.contains(&nqn), "{}", third.serving.said);
    // Its own subsystem comes first.
    let at = third.serving.said.find(&nqn).unwrap();
    third.serving.said = format!("subsystem {}", &third.serving.said[at..]);
    third.reads(1, 8);
    // Released, anybody may have it.
    third.does("pool export pool-1");
    assert_eq!(third.does("pool list"), json!([]));
    third.does("pool export pool-1");
    third.serving.end();
    fs::rename(file(&there), file(&here)).unwrap();
    let last = Appliance::start(here.path());
    assert_eq!(last.does("export list"), exports);
    last.reads(1, 8);
    last.serving.end();
}

#[test]
fn a_full_pool_refuses_what_needs_space_and_warns_before() {
    let folder = configured(POOL);
    let appliance = Appliance::start(folder.path());
    // The configuration's namespace waits for its volume.
    assert_eq!(appliance.does("export list"), json!([]));
    appliance.does("volume create named --size 64MiB");
    let exports = appliance.does("export list");
    assert_eq!(
        (&exports[0]["nsid"], &exports[0]["kept_by"]),
        (&json!(7), &json!("configuration"))
    );
    let mut admin = appliance.serving.admin();
    admin
        .command(admin::set_features(0x0b, 0, 1), Payload::None)
        .ok();
    let request = admin.submit(admin::async_event_request(), Payload::None);
    let fill = "--rw write --overwrite --pattern sequential --block-size 128KiB --io-count 400";
    let errors = appliance.bench(7, fill).to_string();
    assert!(errors.contains("Capacity Exceeded"), "{errors}");
    let event = admin.complete(request).value() as u32;
    assert_eq!(
        event & 0xff_ffff,
        0x02_0201,
        "the spare is below its threshold"
    );
    let log = admin::get_log_page(2, u32::MAX, 0, 128, false);
    let page = admin.command(log, Payload::ToHost(512)).ok();
    assert_eq!(
        (page[0] & 1, page[4]),
        (1, 50),
        "critical warning, threshold"
    );
    assert_eq!(appliance.does("pool status p")["level"], "full");
    assert_eq!(appliance.bench(7, "--rw read --io-count 100"), json!([]));
    // A second pool, made while it runs; a thick volume takes its space at once.
    appliance.refuses("pool create q --disk a", "beneath the pool \"p\"");
    appliance.refuses("pool create q --disk c", "no disk or array \"c\"");
    appliance.refuses("pool create q --disk b --warn-at 97", "before it is urgent");
    appliance.does("pool create q --disk b --warn-at 90");
    appliance.refuses("volume create v --size 1MiB", "several pools");
    appliance.refuses("volume create q/v --size 1GiB --thick", "not enough space");
    appliance.does("volume create q/v --size 8MiB --thick --export");
    let blocks = (8 << 20) / 4096;
    assert_eq!(sizes(&mut admin, 1), ([blocks, blocks, 0], false));
    appliance.writes(1, 1);
    appliance.refuses("pool destroy q", "has volumes");
    // Nobody takes what has another name, and nobody makes anew what is there.
    appliance.does("pool export q");
    appliance.refuses("pool import other --disk b", "is \"q\" with the UUID");
    appliance.refuses("pool create other --disk b", "is \"q\" with the UUID");
    appliance.refuses("pool create q --disk b", "`corebay pool import` opens it");
    // Several orders at once open it once; one that is there already is known by its UUID, too.
    let uuid = appliance.does("pool import q --disk b")["uuid"].clone();
    let uuid = uuid.as_str().unwrap().to_uppercase();
    let by_uuid = format!("pool import {uuid} --disk b");
    appliance.does(&by_uuid);
    appliance.does("pool export q");
    let opened = appliance.at_once(&[&by_uuid, "pool import q --disk b", &by_uuid]);
    for opened in opened {
        assert_eq!(opened.map(|pool| pool["name"].clone()), Ok(json!("q")));
    }
    let pools = appliance.does("pool list");
    assert_eq!(pools.as_array().map(Vec::len), Some(2));
    appliance.writes(1, 1);
    appliance.does("pool destroy q --force");
    // Also where the answer was lost.
    appliance.does("pool destroy q --force");
    // One of several is made, and the others are told of it.
    let made = appliance.at_once(&["pool create r --disk b", "pool create s --disk b"]);
    let (good, bad): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
    assert_eq!((good.len(), bad.len()), (1, 1));
    let why = bad[0].as_ref().unwrap_err();
    assert!(why.contains("\"b\""), "{why}");
    drop(admin);
    appliance.serving.end();
}

#[test]
fn a_pool_that_cannot_be_opened_is_checked_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let appliance = Appliance::start(folder.path());
    appliance.serving.end();
    // All but the superblocks.
    let file = File::options()
        .write(true)
        .open(folder.path().join("pool-1.img"))
        .unwrap();
    file.write_all_at(&vec![0x55; 16 << 20], 1 << 20).unwrap();
    let appliance = Appliance::start(folder.path());
    let listed = appliance.does("pool list");
    assert_eq!(listed[0]["state"], "unavailable");
    let why = appliance.does("pool status")["problem"].to_string();
    assert!(why.contains("damaged"), "{why}");
    let why = appliance.run("pool check").expect_err("it is damaged");
    assert!(
        why.contains("damaged") && !why.contains("not available"),
        "{why}"
    );
    appliance.refuses("pool export pool-1", "the configuration names it");
    appliance.refuses("volume create v --size 1MiB", "is not available");
    appliance.refuses("pool destroy pool-1", "--force");
    appliance.does("pool destroy pool-1 --force");
    appliance.does("pool destroy pool-1 --force");
    let why = appliance.run("pool check").expect_err("it is gone");
    assert!(why.contains("no pool"), "{why}");
    appliance.serving.end();
}

#[test]
fn two_machines_disks_have_pools_of_one_name() {
    let folder = tempfile::tempdir().unwrap();
    let disks = ["one", "two"].map(|machine| {
        let appliance = Appliance::start(&folder.path().join(machine));
        appliance.does("pool export pool-1");
        appliance.serving.end();
        let path = folder.path().join(machine).join("pool-1.img");
        format!(
            "[[disk]]\nname = \"{machine}\"\nfile = {{ path = \"{}\" }}\n",
            text(&path)
        )
    });
    let file = folder.path().join("corebay.toml");
    let head = format!(
        "data_dir = \"{}\"\n[[listener]]\naddress = \"127.0.0.1:{}\"\n",
        text(folder.path()),
        serving::free_port()
    );
    fs::write(&file, head + &disks.concat()).unwrap();
    let appliance = Appliance {
        serving: Serving::start_as(&["--config", text(&file)]),
        control: folder.path().join("corebay.sock"),
    };
    let first = appliance.does("pool import pool-1 --disk one")["uuid"].clone();
    let told = appliance.run("pool import other --disk two").unwrap_err();
    let second = told.split("UUID ").nth(1).unwrap().trim();
    // By its UUID it is not taken beside the other one either: orders would not know which is meant.
    let import = format!("pool import {second} --disk two");
    appliance.refuses(&import, "has the same name");
    appliance.does("pool rename pool-1 mine");
    assert_eq!(appliance.does(&import)["name"], "pool-1");
    assert_eq!(appliance.does("pool status mine")["uuid"], first);
    assert_eq!(
        appliance.does(&format!("pool status {second}"))["name"],
        "pool-1"
    );
    appliance.serving.end();
}

#[test]
fn a_pool_that_is_gone_is_forgotten() {
    let folder = configured(POOL);
    let file = folder.path().join("corebay.toml");
    let start = || Appliance {
        serving: Serving::start_as(&["--config", text(&file)]),
        control: folder.path().join("corebay.sock"),
    };
    let appliance = start();
    let made = appliance.does("pool create q --disk b");
    let import = format!("pool import {} --disk b", made["uuid"].as_str().unwrap());
    appliance.does("pool export q");
    appliance.refuses("pool rename p q", "the configuration names");
    appliance.does(&import);
    appliance.does("pool rename q z");
    appliance.does("pool export z");
    appliance.refuses("pool import q --disk b", "is \"z\" with the UUID");
    appliance.does(&import);
    appliance.does(&format!("pool status {}", made["uuid"].as_str().unwrap()));
    appliance.serving.end();
    // Memory keeps nothing: the disk is blank now.
    let appliance = start();
    let list = appliance.does("pool list");
    let state = |name: &str| {
        let mut pools = list.as_array().unwrap().iter();
        pools.find(|pool| pool["name"] == name).unwrap()["state"].clone()
    };
    assert_eq!(
        (state("p"), state("z")),
        (json!("online"), json!("unavailable"))
    );
    // They say the same of both, as far as it is known.
    let keys = |pool: &Value| Vec::from_iter(pool.as_object().unwrap().keys().cloned());
    assert_eq!(keys(&list[0]), keys(&list[1]));
    assert_eq!(appliance.does("pool export z")["state"], "forgotten");
    assert_eq!(appliance.does("pool export z")["state"], "released");
    appliance.does("pool create q --disk b");
    appliance.serving.end();
}

#[test]
fn who_sees_a_volume_is_what_was_said() {
    let folder = configured(POOL);
    let file = folder.path().join("corebay.toml");
    let appliance = Appliance {
        serving: Serving::start_as(&["--config", text(&file)]),
        control: folder.path().join("corebay.sock"),
    };
    let host = |number: u32| format!("--host nqn.2024-01.com.example:h{number}");
    let own = "--export --subsystem nqn.2024-01.com.example:own";
    appliance.does(&format!("volume create v --size 1MiB {own} {}", host(1)));
    // What another namespace has, or the configuration names, is refused before a volume is made.
    appliance.refuses(
        &format!("volume create w --size 1MiB {own} --nsid 1 {}", host(1)),
        "another namespace 1",
    );
    let discovery = "--subsystem nqn.2014-08.org.nvmexpress.discovery";
    appliance.refuses(
        &format!("volume create w --size 1MiB --export {discovery}"),
        "discovery service",
    );
    appliance.refuses("volume show w", "no volume");
    appliance.refuses(
        "volume create named --size 1MiB --export",
        "the configuration",
    );
    appliance.refuses("volume create w.importing --size 1MiB", "is no name");
    // A host that is not listed takes nothing with it, and the last one that is takes all.
    let left = appliance.does(&format!("export remove v {}", host(9)));
    assert_eq!(left["export"]["hosts"].as_array().unwrap().len(), 1);
    let left = appliance.does(&format!("export remove v {}", host(1)));
    assert_eq!(left["export"], Value::Null);
    appliance.does(&format!("export add v {} --allow-any-host", &own[9..]));
    appliance.refuses(&format!("export remove v {}", host(1)), "every host may");
    appliance.does("volume create x --size 1MiB --export");
    appliance.refuses(
        &format!("export remove x {}", host(1)),
        "the configuration says",
    );
    // A volume that the configuration names is shown whatever made it, and keeps its name.
    appliance.does("snapshot create v@one");
    let clone = appliance.does("volume clone v@one named");
    assert_eq!(clone["export"]["nsid"], 7);
    appliance.refuses("volume rename named other", "the configuration names");
    appliance.does("snapshot create x@one");
    appliance.does("volume create y --size 1MiB");
    appliance.does("snapshot create y@one");
    appliance.does("volume delete y");
    appliance.refuses("volume rename x y", "one of this volume's would get");
    let long = "x".repeat(198);
    appliance.does(&format!("snapshot create x@{}", &long[..100]));
    appliance.refuses(&format!("volume rename x {long}"), "too long");
    assert_eq!(appliance.does("volume show x@one")["origin"], "x");
    appliance.serving.end();
}

#[test]
fn a_pool_that_stopped_is_opened_again_once_its_disk_works() {
    let folder = tempfile::tempdir().unwrap();
    let serving = Serving::start_limited(&["--data-dir", text(folder.path()), "--size", "64MiB"]);
    let control = folder.path().join("corebay.sock");
    let appliance = Appliance { serving, control };
    appliance.writes(1, 1);
    let disk = appliance.does("pool status")["disk"].clone();
    let import = format!("pool import pool-1 --disk {}", disk.as_str().unwrap());
    assert_eq!(appliance.does(&import)["state"], "online");
    // No write of the file succeeds.
    appliance.serving.limit_files(Some(4096));
    appliance.refuses("volume create other --size 1MiB", "");
    let status = appliance.does("pool status");
    assert_eq!(status["state"], "failed");
    assert!(status["problem"].as_str().unwrap().contains("pool import"));
    appliance.refuses("volume create other --size 1MiB", "pool import");
    appliance.reads(1, 1);
    // It is not opened before that.
    appliance.refuses(&import, "");
    appliance.serving.limit_files(None);
    let opened = appliance.does(&import);
    assert_eq!(
        (&opened["state"], &opened["problem"]),
        (&json!("online"), &Value::Null)
    );
    appliance.reads(1, 1);
    appliance.writes(1, 2);
    appliance.does("volume create other --size 1MiB --export");
    appliance.reads(1, 2);
    assert_eq!(appliance.does("pool check")["good"], true);
    appliance.serving.end();
}

/// A disk that is served is not written over, nor taken for an image. It is the largest file of the data folder.
fn refuses_a_served_disk(appliance: &Appliance, folder: &Path) {
    let disk = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let disk = disk
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    let disk = disk.display();
    for line in [
        format!("volume send copy@one --to {disk}"),
        format!("volume export copy@one {disk}"),
        format!("volume import image {disk}"),
        format!("volume receive stream --file {disk}"),
    ] {
        appliance.refuses(&line, "uses it as a disk");
    }
}

#[test]
fn volumes_go_in_and_out_and_are_limited() {
    let folder = tempfile::tempdir().unwrap();
    let appliance = Appliance::start(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    appliance.writes(1, 1);
    appliance.does("snapshot create volume-1@one");
    appliance.writes(1, 2);
    appliance.does("snapshot create volume-1@two");
    // A stream of all, then of what has changed; through a pipe, too.
    let (all, changes) = (file("all"), file("changes"));
    let sent = appliance.does(&format!("volume send volume-1@one --to {all}"));
    // Workers that are faster begin again before others have ended, so not all blocks need be written.
    let used = appliance.does("volume show volume-1@one")["used_bytes"].clone();
    assert_eq!(sent["data_bytes"], used);
    assert!(used.as_u64().is_some_and(|used| used > 512 << 10), "{used}");
    let line = format!("volume send volume-1@two --from volume-1@one --to {changes}");
    appliance.does(&line);
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Appliance::start(elsewhere.path());
    let receive = format!("volume receive copy --snapshot one --file {all}");
    let got = other.does(&receive);
    assert_eq!(got["kind"], "snapshot");
    assert_eq!(got["name"], "copy@one");
    assert_eq!(other.does(&receive)["uuid"], got["uuid"], "received once");
    // It is another volume's, and no stream's name is taken as it is.
    let elsewhere_too = format!("volume receive second --file {all}");
    other.refuses(&elsewhere_too, "as \"copy@one\"");
    other.refuses(
        &format!("volume receive a/b@c --file {all}"),
        "no pool \"a\"",
    );
    other.refuses(&format!("volume receive b@c --file {all}"), "is no name");
    // What is refused leaves the file as it was.
    let before = fs::read(&all).unwrap();
    other.refuses(&format!("volume send copy --to {all}"), "take one first");
    other.refuses(&format!("volume export missing {all}"), "no volume");
    assert_eq!(fs::read(&all).unwrap(), before);
    refuses_a_served_disk(&other, elsewhere.path());
    // And makes none.
    let none = file("none");
    other.refuses(&format!("volume send copy --to {none}"), "take one first");
    other.refuses(&format!("volume export missing {none}"), "no volume");
    assert!(!fs::exists(&none).unwrap());
    let nowhere = format!("volume send volume-1@one --to {}", file("no/folder"));
    appliance.refuses(&nowhere, "no/folder");
    other.does("export add copy");
    other.reads(2, 1);
    other.does("export remove copy");
    let mut send = Command::new(PROGRAM)
        .args(["volume", "send", "volume-1@two", "--from", "volume-1@one"])
        .args(["--control", text(&appliance.control)])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let received = Command::new(PROGRAM)
        .args(["volume", "receive", "copy", "--snapshot", "two"])
        .args(["--control", text(&other.control)])
        .stdin(send.stdout.take().unwrap())
        .status()
        .unwrap();
    assert!(send.wait().unwrap().success() && received.success());
    other.does("export add copy");
    other.reads(2, 2);
    other.serving.end();
    // An image, and back.
    let image = file("image");
    appliance.does(&format!("volume export volume-1@one {image}"));
    assert_eq!(fs::metadata(&image).unwrap().len(), 64 << 20);
    let import = format!("volume import third {image} --export");
    let made = appliance.does(&import);
    assert_eq!(
        (&made["used_bytes"], &made["bytes"]),
        (&used, &json!(64 << 20))
    );
    appliance.reads(2, 1);
    assert_eq!(appliance.does(&import)["uuid"], made["uuid"], "made once");
    // The same name for something else, of the same size.
    let other_image = file("other-image");
    fs::copy(&image, &other_image).unwrap();
    appliance.refuses(
        &format!("volume import third {other_image}"),
        "is there already",
    );
    appliance.serving.end();
}

#[test]
fn what_cannot_be_shown_to_hosts_as_wished_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    fs::write(&image, vec![7; 1 << 20]).unwrap();
    let appliance = Appliance::start(folder.path());
    appliance.does("snapshot create volume-1@one");
    for make in [
        "volume create new --size 16MiB".to_owned(),
        "volume clone volume-1@one new".to_owned(),
        format!("volume import new {}", text(&image)),
    ] {
        let wish = "--export --subsystem nqn.2024-01.com.example:other";
        appliance.refuses(&format!("{make} {wish}"), "nobody could connect");
        appliance.refuses("volume show new", "no volume");
    }
    appliance.serving.end();
}

#[test]
fn clones_stand_by_themselves_and_limits_hold() {
    let folder = tempfile::tempdir().unwrap();
    let appliance = Appliance::start(folder.path());
    appliance.writes(1, 1);
    appliance.does("snapshot create volume-1@one");
    appliance.does("volume create third --size 64MiB --export");
    // A clone that stands by itself, and one that takes its origin's place.
    appliance.does("volume clone volume-1@one own");
    appliance.does("volume inflate own");
    appliance.does("volume clone volume-1@one new");
    appliance.does("volume promote new");
    let origin = |name: &str| appliance.does(&format!("volume show {name}"))["origin"].clone();
    assert_eq!(origin("volume-1@one"), "new");
    assert_eq!(origin("volume-1"), "volume-1@one");
    // One of a clone: given again, it is promoted no further.
    appliance.does("snapshot create volume-1@two");
    appliance.does("volume clone volume-1@two far");
    for _ in 0..2 {
        appliance.does("volume promote far --origin volume-1@two");
        assert_eq!(origin("far"), "volume-1@one");
        assert_eq!(origin("volume-1"), "volume-1@two");
    }
    appliance.refuses(
        "volume promote third --origin volume-1@two",
        "is no clone of",
    );
    // At 100 a second, after 1 at once, 100 writes take about a second.
    let limited = appliance.does("volume set third --write-iops 100:1");
    assert_eq!(limited["limits"]["write_operations"]["per_second"], 100);
    let start = std::time::Instant::now();
    let errors = appliance.bench(2, "--rw write --overwrite --io-count 100");
    assert!(start.elapsed().as_millis() >= 900, "{:?}", start.elapsed());
    assert_eq!(errors, json!([]));
    // A host that fills queues with what waits leaves the core to others.
    let mut flood = Command::new(PROGRAM)
        .args(["bench", "--rw", "write", "--overwrite", "--nsid", "2"])
        .args(["--queues", "6", "--depth", "1000", "--time", "60s"])
        .args([
            "--address",
            &format!("127.0.0.1:{}", appliance.serving.port()),
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    let start = std::time::Instant::now();
    let errors = appliance.bench(1, "--rw read --io-count 4000 --depth 64");
    assert_eq!(errors, json!([]));
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
    flood.kill().unwrap();
    flood.wait().unwrap();
    appliance.does("volume set third --write-iops 0");
    appliance.does("pool extend pool-1");
    assert_eq!(appliance.does("pool check")["good"], true);
    appliance.serving.end();
}

#[test]
fn a_pool_lies_on_an_array_that_was_made_while_it_runs() {
    let subsystem = "nqn = \"nqn.2024-01.com.example:v\"\nallow_any_host = true\n";
    let folder = configured(&format!("[[subsystem]]\n{subsystem}"));
    let appliance = Appliance::start(folder.path());
    appliance.does("array create m a b --level raid1");
    appliance.does("pool create p --disk m");
    appliance.does("volume create v --size 8MiB --export");
    appliance.writes(1, 4);
    appliance.refuses("array stop m", "beneath the pool \"p\"");
    appliance.reads(1, 4);
    appliance.serving.end();
}

#[test]
fn what_is_refused_because_of_work_takes_nothing_from_hosts() {
    let folder = tempfile::tempdir().unwrap();
    let appliance = Appliance::start(folder.path());
    appliance.writes(1, 1);
    // The only pool needs no name; sizes are told as people say them.
    assert_eq!(appliance.does("pool status")["name"], "pool-1");
    appliance.refuses(
        "volume create volume-1 --size 1MiB",
        "a thin volume of 64MiB",
    );
    let mut receive = Command::new(PROGRAM)
        .args(["volume", "receive", "copy", "--snapshot", "one"])
        .args(["--control", text(&appliance.control)])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Refused as busy from when it has begun.
    let refused = |line: &str| {
        let why = appliance.run(line).expect_err(line);
        why.contains("is under way")
    };
    let start = std::time::Instant::now();
    while !refused("pool destroy pool-1") {
        assert!(start.elapsed().as_secs() < 60, "the work does not begin");
    }
    appliance.refuses("pool destroy pool-1 --force", "is under way");
    appliance.refuses("pool export pool-1", "is under way");
    // Whatever the pool is called by now.
    appliance.does("pool rename pool-1 other");
    appliance.refuses("pool export other", "is under way");
    appliance.does("pool rename other pool-1");
    appliance.reads(1, 1);
    // Also what is not there before its end.
    appliance.refuses("volume delete copy", "is under way");
    // It ends by order, though nothing comes any more.
    appliance.refuses("volume cancel volume-1", "nothing is under way");
    appliance.does("volume cancel copy");
    assert!(!receive.wait().unwrap().success());
    drop(receive.stdin.take());
    appliance.does("pool export pool-1");
    appliance.serving.end();
}

/// An array of three files, with what is said of it, and a pool on it.
fn on_an_array(said: &str) -> TempDir {
    let mut more = format!(
        "[[array]]\nname = \"r\"\nlevel = \"raid5\"\nmembers = [\"c\", \"d\", \"e\"]\n\
         create = true\nmember_timeout = \"60s\"\n{said}[[pool]]\nname = \"p\"\ndisk = \"r\"\ncreate = true\n\
         [[subsystem]]\nnqn = \"nqn.2024-01.com.example:v\"\nallow_any_host = true\n"
    );
    for name in ["c", "d", "e"] {
        more += &format!(
            "[[disk]]\nname = \"{name}\"\n\
             file = {{ path = \"{name}.img\", size = \"40MiB\", create = true }}\n"
        );
    }
    configured(&more)
}

#[test]
fn the_journal_of_a_pool_on_parity_survives_in_the_mirrored_zone() {
    let folder = on_an_array("");
    let start = || Appliance::start(folder.path());
    let first = start();
    assert_eq!(first.does("array status r")["zone_bytes"], 640 << 10);
    assert_eq!(first.does("pool status p")["journal"], "zone");
    first.does("volume create p/v --size 16MiB --export");
    first.writes(1, 3);
    first.does("snapshot create p/v@s");
    first.serving.kill();
    // Each disk with a copy of the zone is replaced in turn, the appliance killed in between.
    for (seed, disk) in [(3, "c"), (4, "d")] {
        fs::remove_file(folder.path().join(format!("{disk}.img"))).unwrap();
        let degraded = start();
        degraded.reads(1, seed);
        degraded.writes(1, seed + 1);
        assert_eq!(degraded.does("pool check p")["good"], true);
        let role = if disk == "c" { 0 } else { 1 };
        degraded.does(&format!("array replace r {role} {disk}"));
        while degraded.does("array status r")["state"] != "good" {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        degraded.serving.kill();
    }
    let last = start();
    last.reads(1, 5);
    assert_eq!(last.does("pool check p")["good"], true);
    last.does("volume rollback p/v v@s --force");
    last.reads(1, 3);
    last.serving.end();
}

#[test]
fn an_array_has_the_zone_that_is_asked_for() {
    let folder = on_an_array("zone = \"none\"\n");
    let appliance = Appliance::start(folder.path());
    assert_eq!(appliance.does("array status r")["zone_bytes"], 0);
    assert_eq!(appliance.does("pool status p")["journal"], "disk");
    let refused = [
        ("--level raid1 --zone 1MiB", "for levels with parity"),
        ("--level raid5 --zone 100KiB", "from 512KiB to 1GiB"),
        ("--level raid5 --zone 1234567", "a multiple of 4KiB"),
    ];
    for (how, why) in refused {
        appliance.refuses(&format!("array create s {how} a b"), why);
    }
    appliance.serving.end();
}
