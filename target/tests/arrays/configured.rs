//! Arrays that the configuration names.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    array, array_status,
    serving::{PATIENCE, PROGRAM, Serving, free_port, refused, text},
};

/// A RAID 5 of three files with one namespace, whose members are named in this order.
fn raid5(folder: &Path, port: u16, members: [&str; 3], create: bool) -> std::path::PathBuf {
    let file = folder.join("raid.toml");
    let data = folder.join("data");
    let mut toml = format!(
        "data_dir = \"{}\"\n[[listener]]\naddress = \"127.0.0.1:{port}\"\n\
         [[subsystem]]\nnqn = \"nqn.2026-01.io.corebay:raid\"\nallow_any_host = true\n\
         [[subsystem.namespace]]\ndisk = \"r\"\n[[array]]\nname = \"r\"\nlevel = \"raid5\"\n\
         members = {members:?}\ncreate = {create}\nmember_timeout = \"60s\"\n",
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
    // Disks that are another array are told of before the start.
    let check = || {
        let checked = Command::new(PROGRAM).args(["check", text(&file)]).output();
        let checked = checked.unwrap();
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        (checked.status.success(), said)
    };
    assert!(check().0);
    let said = fs::read_to_string(&file).unwrap();
    fs::write(&file, said.replace("\"raid5\"", "\"raid0\"")).unwrap();
    let (good, why) = check();
    assert!(!good && why.contains("is a member of RAID 5 of 3"), "{why}");
    assert!(!refused(&["--config", text(&file)]).is_empty());
    fs::write(&file, said).unwrap();
    let data = path.join("data");
    fs::rename(data.join("a.img"), data.join("kept.img")).unwrap();
    let third = Serving::start_as(&["--config", text(&file)]);
    verify(&third);
    third.kill();
    // One is missing already: the other two are needed. All else is served until they are there.
    fs::rename(data.join("b.img"), data.join("away.img")).unwrap();
    let mut fourth = Serving::start_as(&["--config", text(&file)]);
    let socket = data.join("corebay.sock");
    let status = array_status(&socket);
    assert_eq!(status["state"], "absent");
    let trouble = status["trouble"].as_str().unwrap();
    assert!(trouble.contains("too few members"), "{status}");
    assert!(!array(&socket, &["assemble", "r"]).0);
    // It keeps no change of all else back.
    let said = fourth.reload();
    assert!(said.contains("in force"), "{said}");
    fs::rename(data.join("away.img"), data.join("b.img")).unwrap();
    let (assembled, said) = array(&socket, &["assemble", "r"]);
    assert!(assembled, "{said}");
    let said = fourth.reload();
    assert!(said.contains("in force"), "{said}");
    verify(&fourth);
    fourth.end();
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

/// What is no request, or too long, is answered and harms nobody.
fn send_nonsense(socket: &Path) {
    for sent in [&b"nonsense\n"[..], &[b'x'; 70_000]] {
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        let _ = std::io::Write::write_all(&mut stream, sent);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut said = String::new();
        let _ = BufReader::new(stream).read_line(&mut said);
        assert!(said.contains("error") || sent.len() > 65_536, "{said}");
    }
}

#[test]
fn an_array_is_operated_over_the_control_socket() {
    use std::os::unix::fs::PermissionsExt;
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
    // What is asked for twice is done once.
    for member in ["1", "1", "b"] {
        let (ok, said) = array(&socket, &["replace", "r", member, "d"]);
        assert!(ok, "{said}");
    }
    assert_eq!(wait_until_good(&socket)["members"][1]["disk"], "d");
    assert!(array(&socket, &["add", "r", "d"]).0);
    assert!(!array(&socket, &["replace", "r", "0", "d"]).0);
    // What held a member before is no spare unless that is said. A spare outlasts the process.
    let (ok, said) = array(&socket, &["spare", "r", "b"]);
    assert!(!ok && said.contains("--lose b"), "{said}");
    assert!(array(&socket, &["spare", "r", "b", "--lose", "b"]).0);
    assert_eq!(array_status(&socket)["spares"], serde_json::json!(["b"]));
    assert!((0..2).all(|_| array(&socket, &["remove", "r", "b"]).0));
    assert!(array(&socket, &["spare", "r", "e"]).0);
    serving.end();
    let serving = Serving::start_as(&["--config", text(&file)]);
    assert_eq!(array_status(&socket)["spares"], serde_json::json!(["e"]));
    // It steps in by itself.
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
    send_nonsense(&socket);
    assert!(array(&socket, &["list"]).0);
    serving.end();
    assert!(!socket.exists());
    // What became a member since is found, though the configuration still lists the first ones.
    let serving = Serving::start_as(&["--config", text(&file)]);
    let status = wait_until_good(&socket);
    assert_eq!(status["members"][1]["disk"], "d", "{status}");
    let read = serving.bench(&[&["--rw", "read"], &span[..]].concat());
    assert_eq!(read["errors"], serde_json::json!([]), "{read}");
    serving.end();
    // The members say whose they are now.
    let toml = toml.replace("[\"a\", \"b\", \"c\"]", "[\"d\", \"c\", \"e\"]");
    let toml = toml.replace("create = true\n[[disk]]", "[[disk]]");
    fs::write(&file, format!("{toml}{}{}", disk("d"), disk("e"))).unwrap();
    let serving = Serving::start_as(&["--config", text(&file)]);
    let read = serving.bench(&[&["--rw", "read"], &span[..]].concat());
    assert_eq!(read["errors"], serde_json::json!([]), "{read}");
    serving.end();
}
