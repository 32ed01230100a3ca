//! Owns the tests of a controller's life: connect and its options, refusals, resets, deletion, idleness.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::endpoint::{NQN, PORT};
use crate::suite::{Case, Lab};

/// The tests of this group.
pub const CASES: &[Case] = &[
    Case::new("connect", connect).peer(),
    Case::new("connect_again_and_again", connect_again_and_again).peer(),
    Case::new("two_controllers_of_one_host", two_controllers).peer(),
    Case::new("queue_layouts", queue_layouts).peer(),
    Case::new("unknown_subsystem", unknown_subsystem).peer(),
    Case::new("reset", reset).peer(),
    Case::new("delete_controller", delete_controller).peer(),
    Case::new("keep_alive_holds", keep_alive_holds).peer(),
    Case::new("idle_host", idle_host),
];

fn connect(lab: &mut Lab) -> Result<()> {
    let controller = lab.connect("")?;
    for (attribute, expected) in [
        ("subsysnqn", NQN),
        ("transport", "tcp"),
        ("state", "live"),
        ("cntrltype", "io"),
    ] {
        let is = lab.host().attribute(&controller, attribute)?;
        ensure!(
            is == expected,
            "{attribute} is {is:?}, expected {expected:?}"
        );
    }
    for namespace in lab.endpoint().namespaces.clone() {
        lab.host().device(&controller, namespace.nsid)?;
    }
    let log = lab.guest.run(&format!("nvme disconnect -n {NQN}"))?;
    ensure!(
        log.contains("disconnected 1 controller"),
        "nvme disconnect says {log}"
    );
    ensure!(lab.host().controllers()?.is_empty(), "a controller is left");
    Ok(())
}

/// Nothing is left behind by an association that ended; controller ids differ while two exist.
fn connect_again_and_again(lab: &mut Lab) -> Result<()> {
    let address = lab.endpoint().address();
    lab.guest.run_within(
        &format!(
            "set -e
             for turn in $(seq 12); do
               nvme connect -t tcp -a {address} -s {PORT} -n {NQN} -i 2
               nvme disconnect -n {NQN}
             done"
        ),
        Duration::from_secs(180),
    )?;
    lab.connect("")?;
    Ok(())
}

fn two_controllers(lab: &mut Lab) -> Result<()> {
    let first = lab.connect("")?;
    let second = lab.connect("--duplicate-connect")?;
    let id = |controller| lab.host().attribute(controller, "cntlid");
    let (one, two) = (id(&first)?, id(&second)?);
    ensure!(one != two, "two controllers have the id {one}");
    ensure!(lab.host().controllers()?.len() == 2, "not two controllers");
    Ok(())
}

/// Queue counts and depths that a host may ask for, with separate queues for reads, writes, polling.
fn queue_layouts(lab: &mut Lab) -> Result<()> {
    for (options, queues, depth) in [
        ("-i 1", 2, None),
        ("-i 2 -Q 16", 3, Some(15)),
        ("-i 2 -W 2", 5, None),
        ("-i 2 -W 2 -P 2", 7, None),
        ("-i 1 -Q 1024", 2, Some(1023)),
    ] {
        let (controller, device) = lab.attach(1, options)?;
        let count = lab.host().attribute(&controller, "queue_count")?;
        ensure!(
            count == queues.to_string(),
            "{options}: {count} queues, expected {queues}"
        );
        if let Some(depth) = depth {
            let is: u32 = lab.host().attribute(&controller, "sqsize")?.parse()?;
            // A target may offer less than the largest depth, never more than was asked.
            ensure!(
                is == depth || (is < depth && is >= 127),
                "{options}: sqsize {is}"
            );
        }
        lab.device_script(&device, 1, "random 64 a; put 8 64 a; same 8 64 a")?;
        lab.host().disconnect_all()?;
    }
    Ok(())
}

fn unknown_subsystem(lab: &mut Lab) -> Result<()> {
    let address = lab.endpoint().address();
    let command = format!("nvme connect -t tcp -a {address} -s {PORT} -n {NQN}x 2>&1");
    let output = lab.guest.attempt(&command, Duration::from_secs(60))?;
    ensure!(
        output.status != 0,
        "connected to a subsystem that is not there"
    );
    let log = lab.guest.take_kernel_log()?;
    // The kernel names the parameter that the target pointed at.
    let verdict = format!("Connect Invalid Data Parameter, subsysnqn \"{NQN}x\"");
    ensure!(log.contains(&verdict), "the kernel says {log}");
    ensure!(lab.host().controllers()?.is_empty(), "a controller is left");
    Ok(())
}

/// By nvme-cli and by sysfs, ten times in a row; data and queues are there again each time.
fn reset(lab: &mut Lab) -> Result<()> {
    let (controller, device) = lab.attach(1, "-i 2")?;
    let name = &controller.name;
    lab.device_script(&device, 1, "random 64 a; put 64 64 a; cp a /tmp/kept")?;
    for turn in 0..10 {
        let how = if turn % 2 == 0 {
            format!("nvme reset /dev/{name}")
        } else {
            format!("echo 1 > /sys/class/nvme/{name}/reset_controller")
        };
        lab.guest.run(&how)?;
        lab.host().wait_live(&controller)?;
        let queues = lab.host().attribute(&controller, "queue_count")?;
        ensure!(queues == "3", "{queues} queues after a reset");
        lab.device_script(&device, 1, "same 64 64 /tmp/kept")?;
    }
    let log = lab.guest.run("dmesg")?;
    ensure!(
        !log.contains("Reconnecting in"),
        "a reset needed another attempt: {log}"
    );
    Ok(())
}

fn delete_controller(lab: &mut Lab) -> Result<()> {
    let (controller, device) = lab.attach(1, "")?;
    lab.device_script(&device, 1, "random 8 a; put 0 8 a; cp a /tmp/kept")?;
    lab.guest.run(&format!(
        "echo 1 > /sys/class/nvme/{}/delete_controller",
        controller.name
    ))?;
    lab.guest
        .until(&format!("[ ! -e {device} ]"), Duration::from_secs(30))?;
    let (_, device) = lab.attach(1, "")?;
    lab.device_script(&device, 1, "same 0 8 /tmp/kept")?;
    Ok(())
}

/// Longer than the keep alive time without a command: keep alives keep the association. The time is long
/// enough for a host that is not run for seconds.
fn keep_alive_holds(lab: &mut Lab) -> Result<()> {
    let (controller, device) = lab.attach(1, "--keep-alive-tmo=8")?;
    let before = lab.host().attribute(&controller, "cntlid")?;
    lab.guest.take_kernel_log()?;
    lab.guest.run("sleep 20")?;
    lab.host().wait_live(&controller)?;
    let log = lab.guest.take_kernel_log()?;
    // That an answer took long says only that the machine is busy.
    let said = |line: &str| line.contains("nvme") && !line.contains("long keepalive RTT");
    ensure!(
        !log.lines().any(said),
        "the association did not stay quiet: {log}"
    );
    ensure!(
        lab.host().attribute(&controller, "cntlid")? == before,
        "another controller id"
    );
    lab.device_script(&device, 1, "random 8 a; put 0 8 a; same 0 8 a")?;
    Ok(())
}

/// A connected host that does nothing costs the appliance next to nothing.
fn idle_host(lab: &mut Lab) -> Result<()> {
    const SECONDS: u64 = 10;
    let (_, device) = lab.attach(1, "")?;
    lab.guest.run("sleep 3")?;
    let id = lab.corebay()?.id().context("corebay does not run")?;
    let before = processor_ms(id)?;
    lab.guest.run(&format!("sleep {SECONDS}"))?;
    let used_ms = processor_ms(id)? - before;
    let limit_ms = SECONDS * 1000 / 20;
    ensure!(
        used_ms <= limit_ms,
        "{used_ms} ms of processor in {SECONDS} idle seconds"
    );
    lab.device_script(&device, 1, "random 8 a; put 0 8 a; same 0 8 a")?;
    Ok(())
}

/// Processor time that a process used so far, user and system; the tick is 10 ms.
fn processor_ms(id: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    let (_, fields) = stat
        .rsplit_once(')')
        .context("a process name in /proc/ID/stat")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    // Fields 14 and 15 of the line; the name was the second.
    Ok((fields[11].parse::<u64>()? + fields[12].parse::<u64>()?) * 10)
}
