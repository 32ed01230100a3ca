//! Arrays of a `corebay` process as its operator meets them: made, used, broken, mended, grown and
//! stopped, by the configuration and over the control socket.
#![allow(
    clippy::disallowed_methods,
    reason = "a test of whole processes waits for them by the machine's clock"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

#[path = "arrays/configured.rs"]
mod configured;
#[path = "harness/mod.rs"]
mod harness;
#[path = "harness/no_array.rs"]
mod no_array;
#[path = "harness/serving.rs"]
mod serving;
#[path = "arrays/superblocks.rs"]
mod superblocks;

use corebay_nvme::spec::command::admin;
use harness::wire::Payload;
use no_array::REFUSED;
use serde_json::{Value, json};
use serving::{PATIENCE, PROGRAM, Serving, complaint, cores, free_port, text};

/// A folder with a configuration of free disks, of which arrays are made over the control socket.
struct Rig {
    folder: tempfile::TempDir,
    port: u16,
    /// Name and MiB.
    disks: Vec<(&'static str, u64)>,
    /// How many, where there are as many.
    cores: usize,
    /// Anything else that the configuration says.
    more: String,
}

const SPAN: [&str; 5] = ["--verify", "--io-count", "300", "--span", "4MiB"];

impl Rig {
    fn new(disks: &[(&'static str, u64)]) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            port: free_port(),
            disks: disks.to_vec(),
            cores: 1,
            more: String::new(),
        }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn disk(&self, name: &str) -> PathBuf {
        self.data().join(format!("{name}.img"))
    }

    fn socket(&self) -> PathBuf {
        self.data().join("corebay.sock")
    }

    /// The configuration, with these disks or arrays exported.
    fn configure(&self, exported: &[&str]) -> PathBuf {
        let file = self.folder.path().join("corebay.toml");
        let mut toml = format!(
            "data_dir = \"{}\"\n[[listener]]\naddress = \"127.0.0.1:{}\"\n",
            text(&self.data()),
            self.port
        );
        if !self.more.contains("[reactor]") {
            toml += &format!("[reactor]\ncores = {}\n", cores(self.cores));
        }
        toml += &self.more;
        for (name, mib) in &self.disks {
            toml += &format!(
                "[[disk]]\nname = \"{name}\"\n\
                 file = {{ path = \"{name}.img\", size = \"{mib}MiB\", create = true }}\n"
            );
        }
        toml += "[[subsystem]]\nnqn = \"nqn.2026-01.io.corebay:a\"\nallow_any_host = true\n";
        for name in exported {
            toml += &format!("[[subsystem.namespace]]\ndisk = \"{name}\"\n");
        }
        fs::write(&file, toml).unwrap();
        file
    }

    fn start(&self, exported: &[&str]) -> Serving {
        let file = self.configure(exported);
        Serving::start_as(&["--config", text(&file)])
    }

    /// Runs `corebay array`, which must succeed. No member is given up because the disk beneath is busy.
    fn array(&self, arguments: &[&str]) -> Value {
        let patience: &[&str] = match arguments[0] {
            "create" | "assemble" => &["--member-timeout", "60s"],
            _ => &[],
        };
        let (ok, said) = array(&self.socket(), &[arguments, patience].concat());
        assert!(ok, "{arguments:?}: {said}");
        serde_json::from_str(&said).unwrap()
    }

    /// Runs `corebay array`, which must refuse; gives why.
    fn refused(&self, arguments: &[&str]) -> String {
        let (ok, said) = array(&self.socket(), arguments);
        assert!(!ok, "{arguments:?}: {said}");
        said
    }

    fn wait(&self, what: &str, until: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let status = array_status(&self.socket());
            if until(&status) {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "{what}: {status}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn good(&self) -> Value {
        self.wait("good", |status| {
            status["state"] == "good" && status["sweep"].is_null()
        })
    }
}

fn write(serving: &Serving) {
    let written = serving.bench(&[&["--rw", "write", "--overwrite"], &SPAN[..]].concat());
    assert_eq!(written["errors"], json!([]), "{written}");
}

fn verify(serving: &Serving) {
    let read = serving.bench(&[&["--rw", "read"], &SPAN[..]].concat());
    assert_eq!(read["errors"], json!([]), "{read}");
}

const FOUR: [(&str, u64); 4] = [("a", 48), ("b", 48), ("c", 48), ("d", 48)];

#[test]
fn an_array_is_made_exported_kept_stopped_and_found_again() {
    let rig = Rig::new(&FOUR);
    let mut serving = rig.start(&[]);
    // What is asked for twice is done once.
    let create = [
        "create", "r", "--level", "raid5", "a", "b", "c", "--spare", "d",
    ];
    (0..2).for_each(|_| drop(rig.array(&create)));
    rig.array(&["spare", "r", "d"]);
    let status = rig.good();
    assert_eq!(
        (&status["level"], &status["spares"]),
        (&json!("RAID 5"), &json!(["d"]))
    );
    rig.configure(&["r"]);
    let said = serving.reload();
    assert!(said.contains("in force"), "{said}");
    assert_eq!(serving.namespaces(), [1]);
    write(&serving);
    let said = rig.refused(&["stop", "r"]);
    assert!(said.contains("is exported as namespace 1"), "{said}");
    let said = rig.refused(&["create", "r", "--level", "raid0", "d"]);
    assert!(said.contains("runs already"), "{said}");
    serving.end();
    // The next start looks for it, and for its spare, and `check` knows it.
    let mut serving = rig.start(&["r"]);
    let status = rig.good();
    assert_eq!(status["spares"], json!(["d"]));
    verify(&serving);
    let checked = Command::new(PROGRAM)
        .args(["check", text(&rig.configure(&["r"]))])
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
    // A file that does not fit what runs changes nothing.
    rig.configure(&["r", "other"]);
    assert!(serving.reload().contains("nothing was changed"));
    rig.configure(&[]);
    let said = serving.reload();
    assert!(said.contains("in force"), "{said}");
    // It is found again as it was when it was stopped.
    rig.array(&["fail", "r", "a"]);
    rig.wait("the spare", |status| status["members"][0]["disk"] == "d");
    rig.good();
    (0..2).for_each(|_| drop(rig.array(&["stop", "r"])));
    let said = rig.refused(&["create", "r", "--level", "raid5", "a", "b", "c"]);
    assert!(said.contains("\"a\" is not free"), "{said}");
    (0..2).for_each(|_| drop(rig.array(&["assemble", "r"])));
    assert_eq!(rig.good()["members"][0]["disk"], "d");
    rig.array(&["stop", "r"]);
    assert_eq!(rig.array(&["list"]), json!([]));
    serving.end();
    let mut serving = rig.start(&[]);
    assert_eq!(rig.array(&["list"]), json!([]));
    let said = rig.refused(&["create", "r", "--level", "raid5", "a", "b", "c"]);
    assert!(
        said.contains("\"a\" is not free: it is a member of array"),
        "{said}"
    );
    rig.array(&["assemble", "again", "c", "d", "b"]);
    assert_eq!(rig.array(&["list"])[0]["name"], "again");
    rig.configure(&["again"]);
    let said = serving.reload();
    assert!(said.contains("in force"), "{said}");
    verify(&serving);
    serving.end();
}

/// Nor by disks that it does without: their half would go on as another array.
#[test]
fn an_array_that_runs_is_not_assembled_under_another_name() {
    let rig = Rig::new(&FOUR);
    let serving = rig.start(&[]);
    rig.array(&["create", "r", "--level", "raid1", "a", "b"]);
    rig.good();
    rig.array(&["fail", "r", "b"]);
    let said = rig.refused(&["assemble", "other", "b"]);
    assert!(said.contains("runs already, under another name"), "{said}");
    assert_eq!(rig.array(&["list"]).as_array().unwrap().len(), 1);
    // Nothing was written: it comes back as who it was.
    rig.array(&["add", "r", "b"]);
    rig.good();
    rig.array(&["stop", "r"]);
    rig.array(&["assemble", "other", "b", "a"]);
    serving.end();
}

#[test]
fn what_cannot_be_made_is_refused_with_a_reason() {
    let mut rig = Rig::new(&[
        ("a", 64),
        ("b", 64),
        ("c", 64),
        ("tiny", 1),
        ("fs", 64),
        ("x", 64),
    ]);
    rig.more = "[[disk]]\nname = \"nothing\"\nnull = { size = \"64MiB\" }\n\
                [[disk]]\nname = \"small-blocks\"\nram = { size = \"64MiB\" }\n\
                block_size = 512\n"
        .into();
    fs::create_dir(rig.data()).unwrap();
    let mut bytes = vec![0; 64 << 20];
    bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
    fs::write(rig.disk("fs"), &bytes).unwrap();
    let serving = rig.start(&["x"]);
    for (arguments, why) in REFUSED {
        let said = rig.refused(&[&["create", "r", "--level"], arguments].concat());
        assert!(said.contains(why), "{arguments:?}: {said}");
    }
    let said = rig.refused(&["create", "a", "--level", "raid1", "b"]);
    assert!(said.contains("a disk is named \"a\""), "{said}");
    let said = rig.refused(&["create", "r/1", "--level", "raid1", "b"]);
    assert!(said.contains("not a name"), "{said}");
    let said = rig.refused(&["assemble", "r", "a", "b"]);
    assert!(said.contains("no disk is a member"), "{said}");
    assert_eq!(
        fs::read(rig.disk("fs")).unwrap(),
        bytes,
        "nothing was written"
    );
    assert_eq!(rig.array(&["list"]), json!([]));
    // A spare is looked at when it is named, not only when it is needed.
    let with_spare = ["create", "r", "--level", "raid1", "a", "b", "--spare", "fs"];
    let said = rig.refused(&with_spare);
    assert!(
        said.contains("\"fs\" is not free: it holds an ext2"),
        "{said}"
    );
    assert_eq!(rig.array(&["list"]), json!([]));
    // Told by name, it is lost.
    rig.array(&["create", "r", "--level", "raid1", "a", "fs", "--lose", "fs"]);
    rig.good();
    let said = rig.refused(&["create", "s", "--level", "raid1", "a", "b"]);
    assert!(
        said.contains("\"a\" is a member of the array \"r\""),
        "{said}"
    );
    // What the memory bears is said.
    let said = rig.refused(&[
        "create", "s", "--level", "ec", "--data", "2", "--parity", "1", "b", "c", "tiny",
    ]);
    assert!(said.contains("too small"), "{said}");
    serving.end();
}

/// Without an appliance: the same refusals, nothing is written by them, and the appliance finds what was made.
#[test]
fn an_array_is_made_without_an_appliance_and_found_by_one() {
    let mut rig = Rig::new(&[("a", 48), ("b", 48), ("c", 48)]);
    rig.more =
        "[[array]]\nname = \"r\"\nlevel = \"raid5\"\nmembers = [\"a\", \"b\", \"c\"]\n".into();
    fs::create_dir(rig.data()).unwrap();
    for name in ["a", "b", "c"] {
        let file = fs::File::create(rig.disk(name)).unwrap();
        file.set_len(48 << 20).unwrap();
    }
    let mut bytes = vec![0; 48 << 20];
    bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
    fs::write(rig.disk("b"), &bytes).unwrap();
    let paths = ["a", "b", "c"].map(|name| text(&rig.disk(name)).to_owned());
    let [a, b, c] = paths.each_ref().map(String::as_str);
    let create = |level: &str, disks: &[&str]| {
        let offline = [
            "array",
            "create",
            "r",
            "--offline",
            "-o",
            "json",
            "--level",
            level,
        ];
        let run = Command::new(PROGRAM).args(offline).args(disks).output();
        let run = run.unwrap();
        let said = if run.status.success() {
            run.stdout
        } else {
            run.stderr
        };
        (run.status.success(), String::from_utf8(said).unwrap())
    };
    let missing = format!("{a}.no");
    let refusals: [(&str, &[&str], &str); 6] = [
        ("raid5", &[a, b, c], "is not free: it holds an ext2"),
        ("raid5", &[a, b], "takes 3 to"),
        ("raid1", &[a, a], "is named twice"),
        ("raid1", &[a, &missing], "there is no such file"),
        ("raid1", &[a, c, "--lose", b], "is no disk of the new array"),
        ("raid7", &[a, c], "raid7"),
    ];
    for (level, disks, why) in refusals {
        let (ok, said) = create(level, disks);
        assert!(!ok && said.contains(why), "{level} of {disks:?}: {said}");
    }
    assert_eq!(
        fs::read(rig.disk("b")).unwrap(),
        bytes,
        "nothing was written"
    );
    let (ok, said) = create("raid5", &[a, b, c, "--lose", b]);
    assert!(ok, "{said}");
    let made: Value = serde_json::from_str(&said).unwrap();
    let (ok, said) = create("raid1", &[a, b]);
    assert!(!ok && said.contains("it is a member of array"), "{said}");
    let serving = rig.start(&["r"]);
    assert_eq!(rig.good()["uuid"], made["uuid"]);
    write(&serving);
    verify(&serving);
    // What it uses is not taken from it.
    let (ok, said) = create("raid1", &[a, b, "--lose", a, "--lose", b]);
    assert!(!ok && said.contains("uses it as a disk"), "{said}");
    serving.end();
}

#[test]
fn the_memory_for_arrays_to_come_is_a_bound_that_is_told() {
    let mut rig = Rig::new(&FOUR);
    let memory = "memory = \"64MiB\"\narray_memory = \"4MiB\"";
    rig.more = format!("[reactor]\ncores = {}\n{memory}\n", cores(1));
    let serving = rig.start(&[]);
    rig.array(&["create", "one", "--level", "raid1", "a"]);
    rig.array(&["create", "two", "--level", "raid1", "b"]);
    let said = rig.refused(&["create", "three", "--level", "raid1", "c"]);
    assert!(said.contains("reactor.array_memory"), "{said}");
    // What is stopped leaves room, in whatever order.
    rig.array(&["stop", "one"]);
    rig.array(&["stop", "two"]);
    for _ in 0..3 {
        rig.array(&["assemble", "two", "b"]);
        rig.array(&["stop", "two"]);
    }
    serving.end();
}

/// The process ends after a disk has become a member, and before that is in the state file.
#[test]
fn a_new_member_is_found_although_it_was_not_kept() {
    let rig = Rig::new(&FOUR);
    let serving = rig.start(&[]);
    rig.array(&["create", "r", "--level", "raid5", "a", "b", "c"]);
    rig.good();
    serving.end();
    let state = rig.data().join("corebay.json");
    let before = fs::read(&state).unwrap();
    let serving = rig.start(&[]);
    rig.array(&["fail", "r", "b"]);
    rig.array(&["replace", "r", "b", "d"]);
    rig.good();
    serving.end();
    fs::write(state, before).unwrap();
    let serving = rig.start(&[]);
    assert_eq!(rig.good()["members"][1]["disk"], "d");
    serving.end();
}

#[test]
fn a_mirror_gets_legs_and_loses_some_while_hosts_go_on() {
    let rig = Rig::new(&FOUR);
    let mut serving = rig.start(&[]);
    rig.array(&["create", "r", "--level", "raid1", "a"]);
    rig.configure(&["r"]);
    serving.reload();
    write(&serving);
    for (legs, disk) in [(2, "b"), (3, "c"), (4, "d")] {
        rig.array(&["add", "r", disk]);
        let status = rig.good();
        assert_eq!(status["members"].as_array().unwrap().len(), legs);
    }
    // What was written without a leg is made equal again at once, not at the next start.
    rig.array(&["fail", "r", "d"]);
    write(&serving);
    rig.array(&["remove", "r", "d"]);
    rig.wait("equal", |status| {
        status["resync_due"] == false && status["sweep"].is_null()
    });
    rig.array(&["add", "r", "d", "--lose", "d"]);
    rig.good();
    verify(&serving);
    (0..2).for_each(|_| drop(rig.array(&["remove", "r", "a"])));
    rig.array(&["remove", "r", "0"]);
    let status = rig.good();
    assert_eq!(status["members"][0]["disk"], "c");
    verify(&serving);
    // The disk that went is not taken for a blank one, nor for one that the array could go on from.
    let said = rig.refused(&["add", "r", "a"]);
    assert!(said.contains("--lose a says"), "{said}");
    let said = rig.refused(&["assemble", "again", "a"]);
    assert!(said.contains("no disk is a member"), "{said}");
    rig.array(&["add", "r", "a", "--lose", "a"]);
    rig.good();
    rig.array(&["remove", "r", "c"]);
    rig.array(&["remove", "r", "d"]);
    let said = rig.refused(&["remove", "r", "a"]);
    assert!(said.contains("last good leg"), "{said}");
    serving.kill();
    let serving = rig.start(&["r"]);
    verify(&serving);
    serving.end();
}

#[test]
fn an_array_grows_with_its_members_while_hosts_go_on() {
    let rig = Rig::new(&[
        ("a", 48),
        ("b", 48),
        ("c", 48),
        ("d", 80),
        ("e", 80),
        ("f", 80),
    ]);
    let mut serving = rig.start(&[]);
    rig.array(&["create", "r", "--level", "raid5", "a", "b", "c"]);
    rig.configure(&["r"]);
    serving.reload();
    write(&serving);
    let said = rig.refused(&["grow", "r"]);
    assert!(said.contains("no more than the array uses"), "{said}");
    let blocks = |serving: &Serving| {
        let page = serving
            .admin()
            .command(admin::identify(0, 1, 0), Payload::ToHost(4096));
        u64::from_le_bytes(page.ok()[..8].try_into().unwrap())
    };
    let before = blocks(&serving);
    for (old, new) in [("a", "d"), ("b", "e"), ("c", "f")] {
        rig.array(&["fail", "r", old]);
        rig.array(&["replace", "r", old, new]);
        rig.good();
    }
    rig.array(&["grow", "r"]);
    rig.good();
    let start = Instant::now();
    while blocks(&serving) == before {
        assert!(start.elapsed() < PATIENCE, "hosts see the old size");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!((blocks(&serving) - before) * 4096, 2 * (32 << 20));
    verify(&serving);
    rig.array(&["scrub", "r"]);
    let status = rig.wait("scrubbed", |status| !status["scrubbed"].is_null());
    assert_eq!(status["scrubbed"]["mismatches"], 0);
    serving.end();
    let serving = rig.start(&["r"]);
    assert_eq!((blocks(&serving) - before) * 4096, 2 * (32 << 20));
    verify(&serving);
    serving.end();
}

#[test]
fn a_rebuild_goes_on_where_a_restart_interrupted_it() {
    let rig = Rig::new(&FOUR);
    let serving = rig.start(&[]);
    // What is left takes far longer than a slow machine needs to stop, start and ask.
    let pace = ["--rebuild-floor", "1MiB", "--rebuild-ceiling", "4MiB"];
    rig.array(
        &[
            &["create", "r", "--level", "raid5", "a", "b", "c"],
            &pace[..],
        ]
        .concat(),
    );
    rig.good();
    rig.array(&["fail", "r", "b"]);
    rig.array(&["replace", "r", "b", "d"]);
    let done = |status: &Value| status["sweep"]["done_bytes"].as_u64().unwrap_or(0);
    let rebuilds = |status: &Value| status["sweep"]["kind"] == "rebuild";
    let status = rig.wait("some of it", |status| {
        rebuilds(status) && done(status) > 4 << 20
    });
    let sweep = &status["sweep"];
    assert_eq!(sweep["role"], 1, "{status}");
    let rate = sweep["bytes_per_second"].as_u64().unwrap();
    assert!(rate < 8 << 20, "{status}");
    assert!(sweep["seconds_left"].as_u64().is_some(), "{status}");
    serving.end();
    let serving = rig.start(&[]);
    let status = rig.wait("it goes on", rebuilds);
    assert!(done(&status) > 4 << 20, "{status}");
    let (ok, said) = array(&rig.socket(), &["status", "r", "--watch"]);
    assert!(ok && said.lines().count() > 1, "{said}");
    let last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(last["state"], "good");
    serving.end();
}

#[test]
fn scrubs_begin_by_themselves_and_their_result_is_kept() {
    let rig = Rig::new(&FOUR);
    let serving = rig.start(&[]);
    rig.array(&[
        "create", "r", "--level", "raid6", "a", "b", "c", "d", "--scrub", "1s",
    ]);
    let status = rig.wait("scrubbed", |status| !status["scrubbed"].is_null());
    assert_eq!(status["scrub_every_seconds"], 1);
    assert_eq!(status["scrubbed"]["mismatches"], 0);
    rig.array(&["stop", "r"]);
    // Somebody changes a member behind the array's back.
    let path = rig.disk("a");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - (1 << 20);
    bytes[last..last + 4096].fill(0x77);
    fs::write(&path, bytes).unwrap();
    serving.end();
    let serving = rig.start(&[]);
    rig.array(&["assemble", "r", "a", "b", "c", "d", "--scrub", "1h"]);
    let status = array_status(&rig.socket());
    assert!(!status["scrubbed"].is_null(), "{status}");
    assert!(
        status["scrub_in_seconds"].as_u64().unwrap() > 3000,
        "{status}"
    );
    rig.array(&["scrub", "r"]);
    let status = rig.wait("found", |status| status["scrubbed"]["mismatches"] == 1);
    assert_eq!(
        status["scrubbed"]["mismatched_stripes"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    serving.end();
    let _serving = rig.start(&[]);
    let status = array_status(&rig.socket());
    assert_eq!(status["scrubbed"]["mismatches"], 1, "{status}");
}

#[test]
fn a_scrub_outlasts_a_restart_gives_way_to_a_rebuild_and_can_be_stopped() {
    let rig = Rig::new(&FOUR.map(|(name, _)| (name, 32)));
    let serving = rig.start(&[]);
    // So slow that it is under way wherever it is looked for.
    rig.array(&[
        "create",
        "r",
        "--level",
        "raid5",
        "a",
        "b",
        "c",
        "--spare",
        "d",
        "--rebuild-floor",
        "2MiB",
        "--rebuild-ceiling",
        "2MiB",
    ]);
    rig.good();
    rig.array(&["scrub", "r"]);
    let done = |status: &Value| status["sweep"]["done_bytes"].as_u64().unwrap_or(0);
    let scrubs = |status: &Value| status["sweep"]["kind"] == "scrub";
    rig.wait("some of it", |status| {
        scrubs(status) && done(status) > 1 << 20
    });
    serving.end();
    let serving = rig.start(&[]);
    let status = rig.wait("it goes on", |status| scrubs(status));
    assert!(done(&status) > 1 << 20, "{status}");
    rig.array(&["fail", "r", "b"]);
    rig.wait("the spare is rebuilt", |status| {
        assert!(status["scrubbed"].is_null(), "the rebuild waits: {status}");
        status["sweep"]["kind"] == "rebuild"
    });
    let good = |status: &Value| status["state"] == "good";
    let status = rig.wait("it goes on again", |status| good(status) && scrubs(status));
    assert!(done(&status) > 1 << 20, "{status}");
    rig.array(&["scrub", "r", "--stop"]);
    let status = rig.good();
    assert!(status["scrubbed"].is_null(), "it has not ended: {status}");
    let said = rig.refused(&["scrub", "r", "--stop"]);
    assert!(said.contains("no scrub"), "{said}");
    serving.end();
}

#[test]
fn every_level_serves_several_cores_without_the_members_it_can_do_without() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let mut disks: Vec<_> = names.iter().map(|name| (*name, 48)).collect();
    disks.extend([("y", 48), ("z", 48)]);
    for (level, members, losses) in [
        (&["raid10"][..], 4, 1),
        (&["raid6"], 4, 2),
        (&["ec", "--data", "3", "--parity", "3"], 6, 2),
    ] {
        let mut rig = Rig::new(&disks);
        rig.cores = 2;
        let mut serving = rig.start(&[]);
        let create = [&["create", "r", "--level"], level, &names[..members]].concat();
        rig.array(&create);
        rig.configure(&["r"]);
        serving.reload();
        let two = |rw: &[&str]| {
            let done = serving.bench(&[rw, &["--queues", "2"], &SPAN[..]].concat());
            assert_eq!(done["errors"], json!([]), "{level:?}: {done}");
        };
        two(&["--rw", "write", "--overwrite"]);
        for role in 0..losses {
            rig.array(&["fail", "r", &role.to_string()]);
        }
        two(&["--rw", "read"]);
        for (role, disk) in ["y", "z"][..losses].iter().enumerate() {
            rig.array(&["replace", "r", &role.to_string(), disk]);
        }
        rig.good();
        two(&["--rw", "read"]);
        // One that was away is brought up to date.
        rig.array(&["fail", "r", "3"]);
        two(&["--rw", "write", "--overwrite"]);
        rig.array(&["add", "r", names[3]]);
        let status = rig.good();
        assert_eq!(status["members"][3]["disk"], names[3]);
        two(&["--rw", "read"]);
        serving.end();
    }
}

/// Runs `corebay array`; gives whether it succeeded, and its output.
fn array(socket: &Path, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(PROGRAM)
        .args(["array", "-o", "json", "--control", text(socket)])
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap() + &complaint(&output.stderr);
    (output.status.success(), said)
}

fn array_status(socket: &Path) -> serde_json::Value {
    let (ok, said) = array(socket, &["status", "r"]);
    assert!(ok, "{said}");
    serde_json::from_str(&said).unwrap()
}
