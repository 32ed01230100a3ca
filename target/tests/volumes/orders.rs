//! Owns the tests of orders that are refused, given again, or wait in vain.

use std::time::{Duration, Instant};

use super::*;

#[test]
fn an_image_is_of_one_point_in_time_and_there_once_it_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let serving = Serving::start_limited(&["--data-dir", text(folder.path()), "--size", "64MiB"]);
    let control = folder.path().join("corebay.sock");
    let appliance = Appliance { serving, control };
    let images = tempfile::tempdir().unwrap();
    let path = images.path().join("image");
    let image = text(&path);
    let left = || fs::read_dir(images.path()).unwrap().count();
    appliance.writes(1, 1);
    // Hosts may be writing it.
    let torn = format!("volume export volume-1 {image}");
    appliance.refuses(&torn, "snapshot create volume-1@NAME");
    appliance.does("volume set volume-1 --read-only true");
    appliance.does(&torn);
    appliance.does("volume set volume-1 --read-only false");
    appliance.does("snapshot create volume-1@s");
    fs::remove_file(&path).unwrap();
    // A disk that is full in the middle of it.
    let whole = format!("volume export volume-1@s {image}");
    appliance.serving.limit_files(Some(1 << 20));
    appliance.refuses(&whole, "the file or pipe");
    assert_eq!(left(), 0);
    // What was there is no half image either.
    fs::write(&path, "what was there").unwrap();
    appliance.refuses(&whole, "the file or pipe");
    assert_eq!(fs::read(&path).unwrap(), b"");
    appliance.serving.limit_files(None);
    fs::remove_file(&path).unwrap();
    // What an attempt left that was killed is in nobody's way.
    fs::write(format!("{image}.corebay-part"), "a half").unwrap();
    appliance.does(&whole);
    assert_eq!((left(), fs::metadata(&path).unwrap().len()), (1, 64 << 20));
    appliance.does("volume create plain --size 1MiB");
    appliance.does(&format!("volume export plain {image}"));
    assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20);
    appliance.refuses("volume export plain /dev/null", "written to a file");
    appliance.serving.end();
}

#[test]
fn what_is_refused_says_why_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let appliance = Appliance::start(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    appliance.writes(1, 1);
    appliance.does("snapshot create volume-1@s");
    appliance.does("snapshot create volume-1@t");
    appliance.does("volume clone volume-1@s c");
    let other = "a clone of \"volume-1@s\" and not of \"volume-1@t\"";
    appliance.refuses("volume clone volume-1@t c", other);
    appliance.refuses(
        "volume clone volume-1@t volume-1",
        "no clone of \"volume-1@t\"",
    );
    let stream = file("stream");
    let beyond = format!("volume send volume-1@s --start 16385 --to {stream}");
    appliance.refuses(&beyond, "has 16384 blocks");
    let large = "volume create large --size 1TiB --thick";
    appliance.refuses(large, "1TiB are wanted, ");
    appliance.refuses(large, "may still be taken");
    let total = appliance.does("pool status")["total_bytes"]
        .as_u64()
        .unwrap();
    let image = file("large");
    fs::write(&image, vec![0x5a; usize::try_from(total).unwrap() + 1]).unwrap();
    let import = format!("volume import large {image}");
    appliance.refuses(&import, "may still be taken of the pool");
    let volumes = appliance.does("volume list").to_string();
    assert!(!volumes.contains("large"), "{volumes}");
    appliance.refuses("volume promote volume-1@s", "snapshots are not promoted");
    let other = "no snapshot of \"c\", but made of \"volume-1\"";
    appliance.refuses("volume rollback c volume-1@s", other);
    let hint = format!("--export --control {}", text(&appliance.control));
    assert!(
        appliance.serving.said.contains(&hint),
        "{}",
        appliance.serving.said
    );
    appliance.refuses("volume create none --size 0", "of no bytes");
    appliance.refuses("volume resize volume-1 9EiB", "at most 4PiB");
    for (no_image, why) in [
        (text(folder.path()), "this is none"),
        ("/dev/null", "this is none"),
        (&file("empty"), "is empty"),
    ] {
        fs::write(file("empty"), "").unwrap();
        appliance.refuses(&format!("volume import none {no_image}"), why);
    }
    appliance.serving.end();
    fs::write(file("no-pool"), "some text").unwrap();
    let half = File::options()
        .write(true)
        .open(file("pool-1.img"))
        .unwrap();
    half.set_len(half.metadata().unwrap().len() / 2 / 4096 * 4096)
        .unwrap();
    for (no_pool, why) in [
        ("no-pool", "there is no pool"),
        ("nothing", "No such file"),
        ("pool-1.img", "is smaller than the pool"),
    ] {
        let check = Command::new(PROGRAM)
            .args(["pool", "check", "--offline", &file(no_pool)])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&check.stderr).into_owned();
        assert!(!check.status.success() && said.contains(why), "{said}");
        assert!(!said.contains("help"), "nothing mends it: {said}");
    }
}

#[test]
fn hosts_hear_of_each_threshold() {
    let folder = configured(POOL);
    let appliance = Appliance::start(folder.path());
    appliance.does("volume create named --size 64MiB");
    let mut admin = appliance.serving.admin();
    let wanted = admin::set_features(0x0b, 0, 1);
    admin.command(wanted, Payload::None).ok();
    for (span, levels) in [("12MiB", "warning"), ("64MiB", "critical, full")] {
        let request = admin.submit(admin::async_event_request(), Payload::None);
        appliance.bench(
            7,
            &format!("--rw write --overwrite --pattern sequential --block-size 128KiB --io-count 512 --span {span}"),
        );
        let event = admin.complete(request).value() as u32;
        assert_eq!(
            event & 0xff_ffff,
            0x02_0201,
            "the spare is below its threshold"
        );
        let level = appliance.does("pool status p")["level"].clone();
        assert!(levels.contains(level.as_str().unwrap()), "{level}");
        let log = admin::get_log_page(2, u32::MAX, 0, 128, false);
        admin.command(log, Payload::ToHost(512)).ok();
    }
    drop(admin);
    appliance.serving.end();
}

#[test]
fn a_damaged_stream_says_where_and_is_given_up_as_often_as_asked() {
    let folder = tempfile::tempdir().unwrap();
    let appliance = Appliance::start(folder.path());
    appliance.writes(1, 1);
    appliance.does("snapshot create volume-1@s");
    let path = folder.path().join("stream");
    appliance.does(&format!("volume send volume-1@s --to {}", text(&path)));
    let mut stream = fs::read(&path).unwrap();
    let middle = stream.len() / 2;
    stream[middle] ^= 1;
    fs::write(&path, stream).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Appliance::start(elsewhere.path());
    let receive = format!("volume receive copy --file {}", text(&path));
    let why = other.run(&receive).unwrap_err();
    for part in [
        "bytes from its start, is damaged: its checksum is ",
        "send the rest with --start ",
        "volume receive copy --abort",
    ] {
        assert!(why.contains(part), "{why}");
    }
    let goes_on = other.does("volume show copy")["receiving_from_block"].as_u64();
    assert!(goes_on > Some(0), "what came before is kept: {goes_on:?}");
    let abort = "volume receive copy --abort";
    let ended = |at: &str| other.does(at)["state"].as_str().unwrap().to_owned();
    assert!(ended(abort).contains("deleted"));
    assert_eq!(ended(abort), "not there");
    assert_eq!(
        ended("volume receive volume-1 --abort"),
        "receiving no stream"
    );
    other.serving.end();
    appliance.serving.end();
}

#[test]
fn what_a_volume_takes_of_the_pool_is_told_beside_what_it_uses() {
    let folder = tempfile::tempdir().unwrap();
    let appliance = Appliance::start(folder.path());
    let space = |name: &str| {
        let shown = appliance.does(&format!("volume show {name}"));
        let bytes = |key: &str| shown["space"][key].as_u64().unwrap();
        let space = ["exclusive_bytes", "shared_bytes", "reserved_bytes"].map(bytes);
        (shown["used_bytes"].as_u64().unwrap(), space)
    };
    assert_eq!(space("volume-1"), (0, [0, 0, 0]));
    let line =
        "--rw write --overwrite --io-count 1 --span 4KiB --pattern sequential --depth 1 --queues 1";
    assert_eq!(appliance.bench(1, line), json!([]));
    let (used, [own, shared, reserved]) = space("volume-1");
    assert_eq!((used, shared, reserved), (4096, 0, 0));
    assert!(own > used, "a whole extent: {own}");
    appliance.does("snapshot create volume-1@s");
    assert_eq!(space("volume-1"), (4096, [0, own, 0]));
    appliance.does("volume create thick --size 8MiB --thick");
    assert_eq!(space("thick"), (0, [0, 0, 8 << 20]));
    appliance.serving.end();
}

#[test]
fn an_appliance_that_is_stopped_keeps_nobody_waiting_for_longer_than_asked() {
    let folder = tempfile::tempdir().unwrap();
    let appliance = Appliance::start(folder.path());
    appliance.does("pool list --timeout 5s");
    appliance.serving.signal(Signal::STOP);
    let began = Instant::now();
    let why = appliance.run("pool list --timeout 1s").unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(4), "{why}");
    assert!(why.contains("does not answer within 1s"), "{why}");
    appliance.serving.signal(Signal::CONT);
    appliance.does("pool list --timeout 20s");
    appliance.serving.end();
}

#[test]
fn a_promotion_that_is_given_again_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let appliance = Appliance::start(folder.path());
    appliance.does("snapshot create volume-1@s");
    appliance.does("volume clone volume-1@s c");
    appliance.does("snapshot create c@t");
    appliance.does("volume clone c@t d");
    let promote = "volume promote d --origin c@t";
    assert_eq!(appliance.does(promote)["promoted"], true);
    let again = appliance.does(promote);
    assert_eq!(again["promoted"], false);
    assert_eq!(again["origin"], "volume-1@s", "no further");
    appliance.serving.end();
}
