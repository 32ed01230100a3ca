//! Owns the tests of several paths to one subsystem: one device, and I/O that goes on when a path goes.

use anyhow::{Result, ensure};

use crate::endpoint::{NQN, PORT};
use crate::fio::{self, Fio};
use crate::initiator::Controller;
use crate::suite::{Case, Lab};

/// The tests of this group.
pub const CASES: &[Case] = &[
    Case::new("two_paths_one_device", two_paths_one_device).peer(),
    Case::new("both_paths_see_the_same_data", both_paths_see_the_same_data).peer(),
    Case::new("paths_fail_in_turn", paths_fail_in_turn)
        .peer()
        .io_errors(),
    Case::new("target_killed", target_killed).io_errors(),
];

fn connect_both(lab: &Lab, options: &str) -> Result<[Controller; 2]> {
    let endpoint = lab.endpoint();
    let connect = |index: usize| lab.host().connect(endpoint.addresses[index], PORT, options);
    Ok([connect(0)?, connect(1)?])
}

fn round_robin(lab: &Lab) -> Result<()> {
    lab.guest
        .run("for s in /sys/class/nvme-subsystem/*; do echo round-robin > $s/iopolicy; done")?;
    Ok(())
}

fn two_paths_one_device(lab: &mut Lab) -> Result<()> {
    let [first, second] = connect_both(lab, "")?;
    let id = |controller| lab.host().attribute(controller, "cntlid");
    ensure!(id(&first)? != id(&second)?, "two controllers with one id");
    for namespace in lab.endpoint().namespaces.clone() {
        let one = lab.host().device(&first, namespace.nsid)?;
        let two = lab.host().device(&second, namespace.nsid)?;
        ensure!(
            one == two,
            "namespace {} is {one} and {two}",
            namespace.nsid
        );
    }
    let list = lab.host().json("list-subsys")?;
    let subsystems = list[0]["Subsystems"].as_array().map_or(0, Vec::len);
    ensure!(
        subsystems == 1 && list[0]["Subsystems"][0]["NQN"] == NQN,
        "list-subsys: {list}"
    );
    let paths = list[0]["Subsystems"][0]["Paths"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    ensure!(
        paths.len() == 2 && paths.iter().all(|path| path["State"] == "live"),
        "paths: {list}"
    );
    for controller in [&first, &second] {
        let states = format!(
            "cat /sys/class/nvme/{}/nvme*c*n*/ana_state",
            controller.name
        );
        let states = lab.guest.run(&states)?;
        let good = states.lines().all(|state| state == "optimized");
        ensure!(
            good && states.lines().count() == 2,
            "ANA states of {controller:?}: {states}"
        );
    }
    Ok(())
}

/// Written while only one path is there, read while only the other is.
fn both_paths_see_the_same_data(lab: &mut Lab) -> Result<()> {
    let endpoint = lab.endpoint().clone();
    let mut path = lab.connect("")?;
    for (turn, address) in [endpoint.addresses[1], endpoint.addresses[0]]
        .into_iter()
        .enumerate()
    {
        let device = lab.host().device(&path, 1)?;
        lab.device_script(
            &device,
            1,
            &format!("random 64 a; put {turn}00 64 a; cp a /tmp/kept"),
        )?;
        let other = lab.host().connect(address, PORT, "")?;
        lab.guest.run(&format!(
            "echo 1 > /sys/class/nvme/{}/delete_controller",
            path.name
        ))?;
        lab.device_script(&device, 1, &format!("same {turn}00 64 /tmp/kept"))?;
        path = other;
    }
    Ok(())
}

fn paths_fail_in_turn(lab: &mut Lab) -> Result<()> {
    let paths = connect_both(lab, "-i 2")?;
    round_robin(lab)?;
    let device = lab.host().device(&paths[0], 1)?;
    let load = Fio::verify_for(&device, 16);
    let job = lab.guest.start(&load.script(), load.limit())?;
    let addresses = lab.endpoint().addresses.clone();
    for (path, address) in paths.iter().zip(addresses) {
        lab.guest.run("sleep 3")?;
        lab.guest.run(&format!(
            "echo 1 > /sys/class/nvme/{}/delete_controller",
            path.name
        ))?;
        lab.guest.run("sleep 1")?;
        lab.host().connect(address, PORT, "-i 2")?;
    }
    fio::report(&job.wait()?.success()?)?;
    Ok(())
}

fn target_killed(lab: &mut Lab) -> Result<()> {
    let options = "-i 2 --reconnect-delay=1 --ctrl-loss-tmo=120 --keep-alive-tmo=5";
    let paths = connect_both(lab, options)?;
    round_robin(lab)?;
    let device = lab.host().device(&paths[0], 2)?;
    let load = Fio::verify_for(&device, 14);
    let job = lab.guest.start(&load.script(), load.limit())?;
    lab.guest.run("sleep 4")?;
    lab.corebay()?.kill();
    lab.corebay()?.launch()?;
    for path in &paths {
        lab.host().wait_live(path)?;
    }
    fio::report(&job.wait()?.success()?)?;
    Ok(())
}
