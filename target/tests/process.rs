//! The `corebay` process as its operator meets it: starts, refusals, signals, restarts. Everything
//! is on loopback, on ports that the system picks.
#![allow(
    clippy::disallowed_methods,
    reason = "a test of whole processes waits for them by the machine's clock"
)]

use std::{fs, io::Read, net::TcpListener, path::Path, process::Command};

#[path = "harness/mod.rs"]
mod harness;
#[path = "harness/serving.rs"]
mod serving;

use corebay_nvme::spec::command::admin;
use harness::wire::Payload;
use rustix::process::Signal;
use serving::{PROGRAM, Serving, free_port, refused, text, wait};

#[test]
fn a_second_start_finds_the_same_data_and_names() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let arguments = ["--data-dir", text(&data), "--size", "64MiB"];
    let first = Serving::start(&arguments);
    let written = first.bench(&[
        "--rw",
        "write",
        "--verify",
        "--overwrite",
        "--io-count",
        "200",
        "--span",
        "1MiB",
    ]);
    assert_eq!(written["errors"], serde_json::json!([]), "{written}");
    let names = [first.nqn().to_owned(), first.word_after("uuid ").to_owned()];
    let serial = first.word_after("serial ").to_owned();
    first.end();
    let second = Serving::start(&arguments);
    assert_eq!(names, [second.nqn(), second.word_after("uuid ")]);
    assert_eq!(serial, second.word_after("serial "));
    let read = second.bench(&[
        "--rw",
        "read",
        "--verify",
        "--io-count",
        "200",
        "--span",
        "1MiB",
    ]);
    assert_eq!(read["errors"], serde_json::json!([]), "{read}");
    second.signal(Signal::INT);
    second.end();
}

#[test]
fn saved_features_and_health_outlast_the_process() {
    const WRITE_CACHE: u8 = 0x06;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let arguments = ["--data-dir", text(&data), "--size", "64MiB"];
    let get = |serving: &Serving| {
        let sqe = admin::get_features(WRITE_CACHE, 0, 0, 0);
        serving.admin().command(sqe, Payload::None).value()
    };
    let first = Serving::start(&arguments);
    assert_eq!((get(&first), first.health()), (1, [0, 0, 1, 0]));
    let mut save = admin::set_features(WRITE_CACHE, 0, 0);
    save.cdw10.set(save.cdw10.get() | 1 << 31);
    first.admin().command(save, Payload::None).ok();
    assert_eq!(get(&first), 0, "a new controller starts with it");
    // Whatever happens from here on, it is saved.
    first.kill();
    let second = Serving::start(&arguments);
    assert_eq!((get(&second), second.health()), (0, [0, 0, 2, 1]));
    let written = second.bench(&["--rw", "write", "--overwrite", "--io-count", "100"]);
    assert_eq!(written["errors"], serde_json::json!([]), "{written}");
    let [_, writes, ..] = second.health();
    assert!(writes >= 100, "{writes} writes");
    // A start that is refused serves nothing: it is no power cycle, and its end not unsafe.
    second.end();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refused(&[&arguments[..], &["--listen", &address]].concat());
    let third = Serving::start(&arguments);
    assert_eq!(third.health(), [0, writes, 3, 1]);
    third.end();
}

#[test]
fn a_port_in_use_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = refused(&[
        "--data-dir",
        text(folder.path()),
        "--disk",
        "ram:16MiB",
        "--listen",
        &address,
        "--discovery",
        "127.0.0.1:0",
    ]);
    assert!(
        said.contains(&address) && said.contains("another program"),
        "{said}"
    );
}

#[test]
fn a_folder_and_a_file_in_use_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.img");
    let disk = format!("file:{},size=16MiB", text(&file));
    let (data, other) = (folder.path().join("data"), folder.path().join("other"));
    let serving = Serving::start(&["--data-dir", text(&data), "--disk", &disk]);
    let ports = ["--listen", "127.0.0.1:0", "--discovery", "127.0.0.1:0"];
    let said = refused(
        &[
            &["--data-dir", text(&data), "--disk", "ram:16MiB"],
            &ports[..],
        ]
        .concat(),
    );
    assert!(said.contains("another corebay"), "{said}");
    let said = refused(&[&["--data-dir", text(&other), "--disk", &disk], &ports[..]].concat());
    assert!(said.contains("a.img"), "{said}");
    serving.end();
}

#[test]
fn a_file_that_is_too_small_or_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let small = folder.path().join("small.img");
    fs::write(&small, [0; 4096]).unwrap();
    let disk = format!("file:{},size=16MiB", text(&small));
    let said = refused(&["--data-dir", text(folder.path()), "--disk", &disk]);
    assert!(said.contains("small.img"), "{said}");
    let said = refused(&[
        "--data-dir",
        text(folder.path()),
        "--disk",
        "/dev/no-such-device",
    ]);
    assert!(said.contains("no-such-device"), "{said}");
}

#[test]
fn a_wrong_file_is_refused_with_a_caret() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wrong.toml");
    fs::write(&file, "[reactor]\ncores = [99999]\nsleep = 1\n").unwrap();
    let said = refused(&["--config", text(&file)]);
    assert!(
        said.contains("wrong.toml:2") && said.contains("wrong.toml:3"),
        "{said}"
    );
    assert!(said.contains('^'), "{said}");
}

/// A block device with sectors of 512 bytes, over a file; unmade when dropped.
struct LoopDevice(String);

impl LoopDevice {
    fn over(file: &Path) -> Option<Self> {
        let made = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", "512", text(file)])
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        Some(Self(String::from_utf8(made.stdout).ok()?.trim().to_owned()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn blocks_that_the_loss_of_power_may_tear_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let backing = folder.path().join("backing");
    fs::File::create(&backing)
        .unwrap()
        .set_len(16 << 20)
        .unwrap();
    let Some(device) = LoopDevice::over(&backing) else {
        eprintln!("skipped: no loop device can be made here");
        return;
    };
    let data = folder.path().join("data");
    for (block, tears) in [(",block=4096", true), (",block=512", false), ("", false)] {
        let disk = format!("{}{block}", device.0);
        let mut serving = Serving::start(&["--data-dir", text(&data), "--disk", &disk]);
        serving.signal(Signal::TERM);
        assert_eq!(wait(&mut serving.child), Some(0));
        let mut logged = String::new();
        let log = serving.child.stderr.as_mut().unwrap();
        log.read_to_string(&mut logged).unwrap();
        let told = logged.contains("disk \"disk-1\"") && logged.contains("block=512");
        assert_eq!(told, tears, "{disk}: {logged}");
    }
}

#[test]
fn a_reload_changes_all_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("corebay.toml");
    let (data, port) = (folder.path().join("data"), free_port());
    let data = text(&data);
    let configure = |disks: &[(u32, &str)]| {
        let mut toml = format!(
            "data_dir = \"{data}\"\n[[listener]]\naddress = \"127.0.0.1:{port}\"\n\
             [[subsystem]]\nnqn = \"nqn.2026-01.io.corebay:a\"\nallow_any_host = true\n"
        );
        for (nsid, name) in disks {
            toml += &format!(
                "[[subsystem.namespace]]\nnsid = {nsid}\ndisk = \"{name}\"\n[[disk]]\n\
                 name = \"{name}\"\n\
                 file = {{ path = \"{name}.img\", size = \"16MiB\", create = true }}\n"
            );
        }
        fs::write(&file, toml).unwrap();
    };
    configure(&[(1, "a"), (2, "b")]);
    let mut serving = Serving::start_as(&["--config", text(&file)]);
    assert_eq!(serving.namespaces(), [1, 2]);
    // One of the new disks is somebody else's: the other is not served, and none goes.
    let path = Path::new(data).join("d.img");
    let held = fs::File::create(&path).unwrap();
    held.set_len(16 << 20).unwrap();
    held.lock().unwrap();
    configure(&[(1, "a"), (3, "c"), (4, "d")]);
    let said = serving.reload();
    assert!(
        said.contains("nothing was changed") && said.contains("d.img"),
        "{said}"
    );
    assert_eq!(serving.namespaces(), [1, 2]);
    let write = [
        "--rw",
        "write",
        "--overwrite",
        "--io-count",
        "50",
        "--nsid",
        "2",
    ];
    let written = serving.bench(&write);
    assert_eq!(written["errors"], serde_json::json!([]), "{written}");
    // What was opened in vain was closed again. Unlocked by word: a child process that another test is
    // just starting has the file open, too, until it runs its program.
    held.unlock().unwrap();
    let said = serving.reload();
    assert!(said.contains("in force"), "{said}");
    assert_eq!(serving.namespaces(), [1, 3, 4]);
    serving.end();
}

#[test]
fn no_space_fails_the_write_and_nothing_else() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can mount a small filesystem");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let small = folder.path().join("small");
    fs::create_dir(&small).unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=4m", "corebay", text(&small)];
    if !Command::new("mount")
        .args(mount)
        .status()
        .is_ok_and(|status| status.success())
    {
        eprintln!("skipped: no tmpfs can be mounted here");
        return;
    }
    let disk = format!("file:{},size=64MiB", text(&small.join("a.img")));
    let data = folder.path().join("data");
    let outcome = std::panic::catch_unwind(|| {
        let disks = ["--disk", &disk, "--disk", "ram:16MiB"];
        let serving = Serving::start(&[&["--data-dir", text(&data)], &disks[..]].concat());
        let full = [
            "--rw",
            "write",
            "--pattern",
            "sequential",
            "--overwrite",
            "--depth",
            "4",
        ];
        let size = ["--block-size", "128KiB", "--io-count", "100"];
        let written = serving.bench(&[&full[..], &size[..]].concat());
        let errors = written["errors"].to_string();
        assert!(errors.contains("Capacity Exceeded"), "{written}");
        let read = serving.bench(&["--rw", "read", "--io-count", "100"]);
        assert_eq!(read["errors"], serde_json::json!([]), "{read}");
        let other = [
            &["--nsid", "2", "--block-size", "4KiB", "--io-count", "100"],
            &full[..],
        ];
        let written = serving.bench(&other.concat());
        assert_eq!(written["errors"], serde_json::json!([]), "{written}");
        serving.end();
    });
    let _ = Command::new("umount").arg(&small).status();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// What `corebay discover` shows of a discovery service.
fn discovered(address: &str) -> Vec<serde_json::Value> {
    let output = Command::new(PROGRAM)
        .args(["discover", "-o", "json", address])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    let log: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{complaint}"));
    log["records"].as_array().unwrap().clone()
}

#[test]
fn who_reads_no_further_fails_nothing() {
    let line = format!("'{PROGRAM}' completion bash | head -c 1");
    let output = Command::new("sh").args(["-c", &line]).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.stdout.len(), &*complaint), (1, ""));
}

#[test]
fn ipv6_listeners_are_discovered_and_serve() {
    if TcpListener::bind("[::1]:0").is_err() {
        eprintln!("skipped: this machine has no IPv6 loopback");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let serving = Serving::start_as(&[
        "--data-dir",
        text(folder.path()),
        "--disk",
        "ram:16MiB",
        "--listen",
        "[::1]:0",
        "--listen",
        "127.0.0.1:0",
        "--discovery",
        "[::1]:0",
    ]);
    let port = serving.word_after("at [::1]:");
    let address = format!("[::1]:{port}");
    let records = discovered(&address);
    let of = |family: &str| {
        let is =
            |record: &&serde_json::Value| record["adrfam"] == family && record["subtype"] == "nvm";
        let found: Vec<_> = records.iter().filter(is).collect();
        assert_eq!(found.len(), 1, "{family}: {records:?}");
        found[0].clone()
    };
    let six = of("ipv6");
    assert_eq!(six["traddr"], "::1");
    assert_eq!(six["trsvcid"], port);
    assert_eq!(six["subnqn"], serving.nqn());
    assert_eq!(of("ipv4")["traddr"], "127.0.0.1");
    let io = ["--verify", "--io-count", "200", "--queues", "2"];
    for rw in [&["--rw", "write", "--overwrite"][..], &["--rw", "read"]] {
        let done = serving.bench_at(&address, &[&io, rw].concat());
        assert_eq!(done["errors"], serde_json::json!([]), "{done}");
    }
    serving.end();
}
