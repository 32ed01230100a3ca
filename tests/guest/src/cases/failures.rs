//! Owns the tests of failures: hosts that go away, targets that are killed and come back.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::agent::Job;
use crate::endpoint::{NQN, PORT};
use crate::fio::{self, Fio};
use crate::suite::{Case, Lab};

/// The tests of this group.
pub const CASES: &[Case] = &[
    Case::new("disconnect_under_load", disconnect_under_load)
        .peer()
        .io_errors(),
    Case::new("reconnect_under_load", reconnect_under_load)
        .peer()
        .io_errors(),
    Case::new("identity_survives_restart", identity_survives_restart),
    Case::new("data_survives_kill", data_survives_kill),
    Case::new("killed_under_load", killed_under_load).io_errors(),
    Case::new("stopped_under_load", stopped_under_load).io_errors(),
    Case::new("host_vanishes_under_load", host_vanishes_under_load).io_errors(),
];

/// A host that comes back quickly and does not give up.
const PATIENT: &str = "-i 2 --reconnect-delay=1 --ctrl-loss-tmo=120 --keep-alive-tmo=5";

fn start(lab: &Lab, load: &Fio) -> Result<Job> {
    lab.guest.start(&load.script(), load.limit())
}

/// The load must still run after this long, without an error.
fn still_runs(job: &Job, seconds: u64) -> Result<()> {
    let ended = job.ends_within(Duration::from_secs(seconds))?;
    ensure!(
        ended.is_none(),
        "the load ended early: {}",
        ended.map(|o| o.said()).unwrap_or_default()
    );
    Ok(())
}

/// The load fails at once, the device goes, nothing hangs; a new connection works.
fn disconnect_under_load(lab: &mut Lab) -> Result<()> {
    let (_, device) = lab.attach(1, "-i 2")?;
    let job = start(lab, &Fio::verify_for(&device, 60))?;
    still_runs(&job, 4)?;
    lab.guest.run(&format!("nvme disconnect -n {NQN}"))?;
    let output = job.wait()?;
    ensure!(
        output.status != 0,
        "fio ended well although its device is gone"
    );
    lab.guest
        .until(&format!("[ ! -e {device} ]"), Duration::from_secs(30))?;
    let (_, device) = lab.attach(1, "-i 2")?;
    Fio::verify(&device).run(&lab.guest)?;
    Ok(())
}

/// The same, five times in quick succession with I/O in flight each time.
fn reconnect_under_load(lab: &mut Lab) -> Result<()> {
    for _ in 0..5 {
        let (_, device) = lab.attach(1, "-i 2")?;
        let job = start(lab, &Fio::verify_for(&device, 30))?;
        still_runs(&job, 1)?;
        lab.guest.run(&format!("nvme disconnect -n {NQN}"))?;
        job.wait()?;
    }
    let (_, device) = lab.attach(1, "-i 2")?;
    Fio::verify(&device).run(&lab.guest)?;
    Ok(())
}

/// Everything by which a host knows a subsystem and its namespaces.
fn identity(lab: &Lab) -> Result<String> {
    let controller = lab.connect("")?;
    let mut all = String::new();
    for attribute in ["subsysnqn", "serial", "model", "firmware_rev"] {
        all += &format!(
            "{attribute} {}\n",
            lab.host().attribute(&controller, attribute)?
        );
    }
    for namespace in lab.endpoint().namespaces.clone() {
        let device = lab.host().device(&controller, namespace.nsid)?;
        let name = device.trim_start_matches("/dev/");
        let block = format!("/sys/block/{name}");
        all += &lab
            .guest
            .run(&format!("cd {block}; grep . uuid nguid wwid size"))?;
        all += "\n";
    }
    lab.host().disconnect_all()?;
    Ok(all)
}

fn identity_survives_restart(lab: &mut Lab) -> Result<()> {
    let before = identity(lab)?;
    lab.corebay()?.stop()?;
    lab.corebay()?.launch()?;
    let after = identity(lab)?;
    ensure!(
        before == after,
        "before:\n{before}\nafter a restart:\n{after}"
    );
    lab.corebay()?.kill();
    lab.corebay()?.launch()?;
    let after = identity(lab)?;
    ensure!(before == after, "before:\n{before}\nafter a kill:\n{after}");
    Ok(())
}

/// What was acknowledged is there after SIGKILL, without any flush.
fn data_survives_kill(lab: &mut Lab) -> Result<()> {
    for nsid in [1, 2] {
        let (_, device) = lab.attach(nsid, "")?;
        let write = "random 256 a; put 128 256 a; cp a /tmp/kept
                     nvme write-zeroes $D -s 200 -c 15";
        lab.device_script(&device, nsid, write)?;
        lab.corebay()?.kill();
        lab.host().disconnect_all()?;
        lab.corebay()?.launch()?;
        let (_, device) = lab.attach(nsid, "")?;
        let check = "part /tmp/kept 0 72 p; same 128 72 p; zeros 200 16
                     part /tmp/kept 88 168 p; same 216 168 p";
        lab.device_script(&device, nsid, check)?;
        lab.host().disconnect_all()?;
    }
    Ok(())
}

/// The host reconnects by itself and sends again what was in flight; every block verifies.
fn killed_under_load(lab: &mut Lab) -> Result<()> {
    let (controller, device) = lab.attach(1, PATIENT)?;
    // The load outlasts both restarts also where each takes its time.
    let job = start(lab, &Fio::verify_for(&device, 35))?;
    for pause_ms in [200, 3_000] {
        still_runs(&job, 4)?;
        lab.corebay()?.kill();
        thread::sleep(Duration::from_millis(pause_ms));
        lab.corebay()?.launch()?;
        lab.host().wait_live(&controller)?;
    }
    finish(lab, job)
}

/// A target that is asked to end does so with a host connected and busy; the host comes back.
fn stopped_under_load(lab: &mut Lab) -> Result<()> {
    let (controller, device) = lab.attach(2, PATIENT)?;
    let job = start(lab, &Fio::verify_for(&device, 12))?;
    still_runs(&job, 3)?;
    lab.corebay()?.stop()?;
    thread::sleep(Duration::from_secs(1));
    lab.corebay()?.launch()?;
    lab.host().wait_live(&controller)?;
    finish(lab, job)
}

fn finish(lab: &Lab, job: Job) -> Result<()> {
    let output = job.wait()?;
    ensure!(output.status == 0, "the load failed: {}", output.stderr);
    let report = fio::report(&output.stdout)?;
    ensure!(
        report.reads > 1_000 && report.writes > 500,
        "too little was done: {report:?}"
    );
    let log = lab.guest.run("dmesg")?;
    ensure!(
        !log.contains("digest error") && !log.contains("Buffer I/O error"),
        "{log}"
    );
    let reconnected = log.contains("Successfully reconnected");
    ensure!(reconnected, "the host did not reconnect by itself: {log}");
    Ok(())
}

/// A host whose network vanishes with writes in flight: the target drops the association when its
/// keep alive time is over, and others are served all the while.
fn host_vanishes_under_load(lab: &mut Lab) -> Result<()> {
    let addresses = lab.endpoint().addresses.clone();
    let (controller, device) = lab.attach(1, PATIENT)?;
    let job = start(lab, &Fio::verify_for(&device, 25))?;
    still_runs(&job, 3)?;
    let before = lab.corebay()?.open_connections()?;
    ensure!(before >= 3, "{before} connections while the load runs");
    // No packet leaves any more, and none says goodbye.
    lab.guest
        .run(&format!("ip rule add pref 1 to {} blackhole", addresses[0]))?;
    lab.host().discover(addresses[1], PORT)?;
    thread::sleep(Duration::from_secs(10));
    let after = lab.corebay()?.open_connections()?;
    ensure!(
        after == 0,
        "{after} connections of a host that fell silent 10 s ago"
    );
    lab.guest
        .run(&format!("ip rule del pref 1 to {} blackhole", addresses[0]))?;
    lab.host().wait_live(&controller)?;
    finish(lab, job)
}
