//! The `corebay` process as its operator meets it: starts, refusals, signals, restarts. Everything
//! is on loopback, on ports that the system picks.
#![allow(
    clippy::disallowed_methods,
    reason = "a test of whole processes waits for them by the machine's clock"
)]

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

#[path = "harness/mod.rs"]
mod harness;

use corebay_nvme::spec::command::admin;
use harness::wire::{Connection, Payload};
use rustix::process::{Pid, Signal, kill_process};

const PROGRAM: &str = env!("CARGO_BIN_EXE_corebay");
const PATIENCE: Duration = Duration::from_secs(60);

/// A `corebay serve` that is ready; killed when dropped.
struct Serving {
    child: Child,
    said: String,
}

impl Serving {
    fn start(arguments: &[&str]) -> Self {
        let ports = ["--listen", "127.0.0.1:0", "--discovery", "127.0.0.1:0"];
        Self::start_as(&[&ports, arguments].concat())
    }

    fn start_as(arguments: &[&str]) -> Self {
        let mut child = Command::new(PROGRAM)
            .arg("serve")
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        while !said.contains("\nready") {
            if lines.read_line(&mut said).unwrap() == 0 {
                let mut complaint = String::new();
                child
                    .stderr
                    .take()
                    .unwrap()
                    .read_to_string(&mut complaint)
                    .unwrap();
                panic!("it did not get ready: {said}{complaint}");
            }
        }
        Self { child, said }
    }

    /// What is said after `word`, up to white space or a comma.
    fn word_after(&self, word: &str) -> &str {
        let at = self
            .said
            .find(word)
            .unwrap_or_else(|| panic!("no {word:?} in {}", self.said));
        let rest = &self.said[at + word.len()..];
        rest.split([' ', ',', '\n']).next().unwrap()
    }

    fn port(&self) -> &str {
        self.word_after("at 127.0.0.1:")
    }

    fn nqn(&self) -> &str {
        self.word_after("subsystem ")
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// An association's admin queue.
    fn admin(&self) -> Connection<TcpStream> {
        let address = format!("127.0.0.1:{}", self.port()).parse().unwrap();
        harness::socket::admin(address, &self.nqn().parse().unwrap())
    }

    /// Numbers of the health log: reads, writes, power cycles, unsafe shutdowns.
    fn health(&self) -> [u64; 4] {
        let log = admin::get_log_page(2, u32::MAX, 0, 128, false);
        let page = self.admin().command(log, Payload::ToHost(512)).ok();
        [64, 80, 112, 144].map(|at| u64::from_le_bytes(page[at..at + 8].try_into().unwrap()))
    }

    fn kill(mut self) {
        self.signal(Signal::KILL);
        wait(&mut self.child);
    }

    /// Ends it by SIGTERM; it must end cleanly.
    fn end(mut self) {
        self.signal(Signal::TERM);
        let status = wait(&mut self.child);
        assert_eq!(status, Some(0), "a clean end");
    }

    /// Lets it read its configuration again; gives what it logs of that.
    fn reload(&mut self) -> String {
        self.signal(Signal::HUP);
        let mut said = String::new();
        let log = self.child.stderr.as_mut().unwrap();
        let mut byte = [0];
        // Byte by byte, so that what follows is there for the next time.
        while !(said.contains("SIGHUP") && said.ends_with('\n')) {
            assert_eq!(log.read(&mut byte).unwrap(), 1, "{said}");
            said.push(char::from(byte[0]));
        }
        said
    }

    /// The active namespaces.
    fn namespaces(&self) -> Vec<u32> {
        let list = admin::identify(2, 0, 0);
        let page = self.admin().command(list, Payload::ToHost(4096)).ok();
        let ids = page.chunks_exact(4).map(|id| id.try_into().unwrap());
        ids.map(u32::from_le_bytes)
            .take_while(|id| *id != 0)
            .collect()
    }

    fn bench(&self, arguments: &[&str]) -> serde_json::Value {
        self.bench_at(&format!("127.0.0.1:{}", self.port()), arguments)
    }

    fn bench_at(&self, address: &str, arguments: &[&str]) -> serde_json::Value {
        let output = Command::new(PROGRAM)
            .args([
                "bench",
                "-o",
                "json",
                "--address",
                address,
                "--nqn",
                self.nqn(),
            ])
            .args(["--time", "30s"])
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr))
        })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(child: &mut Child) -> Option<i32> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it did not end");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs `serve`, which must refuse; gives what it says.
fn refused(arguments: &[&str]) -> String {
    let Output { status, stderr, .. } = Command::new(PROGRAM)
        .arg("serve")
        .args(arguments)
        .output()
        .unwrap();
    assert_eq!(status.code(), Some(1));
    String::from_utf8(stderr).unwrap()
}

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

/// A port that nobody listens on.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
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
    // What was opened in vain was closed again.
    drop(held);
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

/// A RAID 5 of three files with one namespace, whose members are named in this order.
fn raid5(folder: &Path, port: u16, members: [&str; 3], create: bool) -> std::path::PathBuf {
    let file = folder.join("raid.toml");
    let data = folder.join("data");
    let mut toml = format!(
        "data_dir = \"{}\"\n[[listener]]\naddress = \"127.0.0.1:{port}\"\n\
         [[subsystem]]\nnqn = \"nqn.2026-01.io.corebay:raid\"\nallow_any_host = true\n\
         [[subsystem.namespace]]\ndisk = \"r\"\n[[array]]\nname = \"r\"\nlevel = \"raid5\"\n\
         members = {members:?}\ncreate = {create}\n",
        text(&data)
    );
    for name in members {
        toml += &format!("[[disk]]\nname = \"{name}\"\nfile = {{ path = \"{name}.img\"");
        toml += match create {
            true => ", size = \"64MiB\", create = true }\n",
            false => " }\n",
        };
    }
    fs::write(&file, toml).unwrap();
    file
}

#[test]
fn an_array_outlasts_the_process_and_a_member() {
    const SPAN: [&str; 5] = ["--verify", "--io-count", "300", "--span", "4MiB"];
    let folder = tempfile::tempdir().unwrap();
    let (path, port) = (folder.path(), free_port());
    let verify = |serving: &Serving| {
        let read = serving.bench(&[&["--rw", "read"], &SPAN[..]].concat());
        assert_eq!(read["errors"], serde_json::json!([]), "{read}");
    };
    // Blank members become an array only where that is said.
    let file = raid5(path, port, ["a", "b", "c"], true);
    let said = fs::read_to_string(&file).unwrap();
    fs::write(&file, said.replace("\ncreate = true", "\ncreate = false")).unwrap();
    let refusal = refused(&["--config", text(&file)]);
    assert!(
        refusal.contains("array \"r\"") && refusal.contains("create = true"),
        "{refusal}"
    );
    raid5(path, port, ["a", "b", "c"], true);
    let first = Serving::start_as(&["--config", text(&file)]);
    let written = first.bench(&[&["--rw", "write", "--overwrite"], &SPAN[..]].concat());
    assert_eq!(written["errors"], serde_json::json!([]), "{written}");
    first.end();
    // Members say themselves whose they are.
    raid5(path, port, ["c", "a", "b"], false);
    let second = Serving::start_as(&["--config", text(&file)]);
    verify(&second);
    second.end();
    let data = path.join("data");
    fs::rename(data.join("a.img"), data.join("kept.img")).unwrap();
    let third = Serving::start_as(&["--config", text(&file)]);
    verify(&third);
    third.kill();
    // One is missing already: the other two are needed.
    fs::remove_file(data.join("b.img")).unwrap();
    let refusal = refused(&["--config", text(&file)]);
    assert!(refusal.contains("too few members"), "{refusal}");
}

#[test]
fn a_disk_with_something_on_it_becomes_no_member() {
    let folder = tempfile::tempdir().unwrap();
    let (data, file) = (
        folder.path().join("data"),
        raid5(folder.path(), free_port(), ["a", "b", "c"], true),
    );
    fs::create_dir(&data).unwrap();
    let mut bytes = vec![0; 64 << 20];
    bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
    fs::write(data.join("b.img"), &bytes).unwrap();
    let refusal = refused(&["--config", text(&file)]);
    assert!(
        refusal.contains("\"b\" is not free") && refusal.contains("ext4"),
        "{refusal}"
    );
    assert_eq!(fs::read(data.join("b.img")).unwrap(), bytes);
}

/// Runs `corebay array`; gives whether it succeeded, and its output.
fn array(socket: &Path, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(PROGRAM)
        .args(["array", "-o", "json", "--control", text(socket)])
        .args(arguments)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

fn array_status(socket: &Path) -> serde_json::Value {
    let (ok, said) = array(socket, &["status", "r"]);
    assert!(ok, "{said}");
    serde_json::from_str(&said).unwrap()
}

/// Waits until the array is good and nothing is under way.
fn wait_until_good(socket: &Path) -> serde_json::Value {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let status = array_status(socket);
        if status["state"] == "good" && status["sweep"].is_null() {
            return status;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("it did not get good: {}", array_status(socket));
}

#[test]
fn an_array_is_operated_over_the_control_socket() {
    use std::os::unix::{fs::PermissionsExt, net::UnixStream};
    let folder = tempfile::tempdir().unwrap();
    let (path, port) = (folder.path(), free_port());
    let file = raid5(path, port, ["a", "b", "c"], true);
    let toml = fs::read_to_string(&file).unwrap();
    let disk = |name: &str| {
        format!(
            "[[disk]]\nname = \"{name}\"\nfile = {{ path = \"{name}.img\", size = \"64MiB\", create = true }}\n"
        )
    };
    fs::write(&file, format!("{toml}{}{}", disk("d"), disk("e"))).unwrap();
    let serving = Serving::start_as(&["--config", text(&file)]);
    let socket = path.join("data").join("corebay.sock");
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let span = ["--verify", "--io-count", "300", "--span", "4MiB"];
    let written = serving.bench(&[&["--rw", "write", "--overwrite"], &span[..]].concat());
    assert_eq!(written["errors"], serde_json::json!([]), "{written}");
    // A failed member, a blank disk for it, and its data are there again.
    assert_eq!(wait_until_good(&socket)["members"][1]["disk"], "b");
    assert!(array(&socket, &["fail", "r", "b"]).0);
    let (ok, said) = array(&socket, &["fail", "r", "c"]);
    assert!(!ok && said.contains("role 2 stays"), "{said}");
    assert_eq!(array_status(&socket)["state"], "degraded");
    let (ok, said) = array(&socket, &["replace", "r", "1", "a"]);
    assert!(!ok && said.contains("is a member"), "{said}");
    let (ok, said) = array(&socket, &["replace", "r", "1", "d"]);
    assert!(ok, "{said}");
    assert_eq!(wait_until_good(&socket)["members"][1]["disk"], "d");
    // A spare steps in by itself.
    assert!(array(&socket, &["spare", "r", "e"]).0);
    assert!(array(&socket, &["fail", "r", "0"]).0);
    let start = Instant::now();
    while array_status(&socket)["members"][0]["disk"] != "e" {
        assert!(start.elapsed() < PATIENCE, "{}", array_status(&socket));
        std::thread::sleep(Duration::from_millis(50));
    }
    wait_until_good(&socket);
    assert!(array(&socket, &["scrub", "r"]).0);
    let start = Instant::now();
    while array_status(&socket)["scrubbed"].is_null() {
        assert!(start.elapsed() < PATIENCE, "{}", array_status(&socket));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(array_status(&socket)["scrubbed"]["mismatches"], 0);
    let read = serving.bench(&[&["--rw", "read"], &span[..]].concat());
    assert_eq!(read["errors"], serde_json::json!([]), "{read}");
    // What is no request, or too long, is answered and harms nobody.
    for sent in [&b"nonsense\n"[..], &[b'x'; 70_000]] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let _ = std::io::Write::write_all(&mut stream, sent);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut said = String::new();
        let _ = BufReader::new(stream).read_line(&mut said);
        assert!(said.contains("error") || sent.len() > 65_536, "{said}");
    }
    assert!(array(&socket, &["list"]).0);
    serving.end();
    assert!(!socket.exists());
    // The members say whose they are now.
    let toml = toml.replace("[\"a\", \"b\", \"c\"]", "[\"d\", \"c\", \"e\"]");
    let toml = toml.replace("create = true\n[[disk]]", "[[disk]]");
    fs::write(&file, format!("{toml}{}{}", disk("d"), disk("e"))).unwrap();
    let serving = Serving::start_as(&["--config", text(&file)]);
    let read = serving.bench(&[&["--rw", "read"], &span[..]].concat());
    assert_eq!(read["errors"], serde_json::json!([]), "{read}");
    serving.end();
}
