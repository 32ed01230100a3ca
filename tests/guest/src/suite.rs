//! Owns the run of the named guest tests: groups, the lab that a group shares, results and messages.
//!
//! - A group shares one target and all groups share one guest; each test starts with nothing connected.
//! - After each test the guest's kernel log must hold no complaint, and the target must still run.
//! - A test that leaves the guest or the target broken costs a new boot, not the other tests.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::corebay::Corebay;
use crate::endpoint::{Endpoint, Namespace};
use crate::guest::Guest;
use crate::hardware::Hardware;
use crate::image::Image;
use crate::initiator::{Controller, Initiator};
use crate::inside::Inside;
use crate::{cases, machine, nvmet, process};

/// A named test.
#[derive(Clone, Copy)]
pub struct Case {
    /// The name within its group.
    pub name: &'static str,
    /// What it does; an error is a failure.
    pub body: fn(&mut Lab) -> Result<()>,
    /// Whether the kernel's own target can pass it too.
    pub peer: bool,
    /// Whether it makes I/O fail on purpose, so that the kernel log may say so.
    pub io_errors: bool,
}

impl Case {
    /// A test of corebay.
    pub const fn new(name: &'static str, body: fn(&mut Lab) -> Result<()>) -> Case {
        Case {
            name,
            body,
            peer: false,
            io_errors: false,
        }
    }

    /// The kernel's own target passes this test too.
    pub const fn peer(self) -> Case {
        Case { peer: true, ..self }
    }

    /// I/O errors in the guest's kernel log belong to this test.
    pub const fn io_errors(self) -> Case {
        Case {
            io_errors: true,
            ..self
        }
    }
}

/// Tests that share one guest and one target.
#[derive(Clone, Copy)]
pub struct Group {
    /// The name before the `::`.
    pub name: &'static str,
    /// The cores that corebay runs on, as `--cores` takes them.
    pub cores: &'static str,
    /// What the target exports.
    pub namespaces: &'static [Namespace],
    /// The guest; one with drives runs corebay within itself.
    pub hardware: Hardware,
    /// The tests.
    pub cases: &'static [Case],
}

/// The target of a run.
#[derive(Clone, Debug)]
pub enum Peer {
    /// The corebay program at this path, on this machine.
    Corebay(PathBuf),
    /// The kernel's own target, in the guest.
    Nvmet,
}

/// What a test works with: a guest and the target that it reaches.
pub struct Lab {
    /// The Linux host.
    pub guest: Guest,
    target: Target,
    /// How much of corebay's output is older than the running test.
    corebay_said: usize,
}

enum Target {
    Corebay(Corebay),
    Inside(Inside),
    Nvmet(Endpoint),
}

impl Lab {
    /// The target of `group`, for a guest that just booted or served another group.
    fn new(guest: Guest, peer: &Peer, group: &Group, loopback: Ipv4Addr) -> Result<Lab> {
        let target = match peer {
            Peer::Corebay(program) if group.hardware == Hardware::Drives => {
                Target::Inside(Inside::install(&guest, program)?)
            }
            Peer::Corebay(program) => {
                let [a, b, c, d] = loopback.octets();
                let addresses = vec![loopback, [a, b, c, d + 1].into()];
                Target::Corebay(Corebay::start(
                    program,
                    addresses,
                    group.cores,
                    group.namespaces,
                )?)
            }
            Peer::Nvmet => Target::Nvmet(nvmet::export(&guest, group.namespaces)?),
        };
        Ok(Lab {
            guest,
            target,
            corebay_said: 0,
        })
    }

    /// Ends the target and gives the guest on to the next group, if nothing was left in it.
    fn end(self) -> Result<Guest> {
        match self.target {
            Target::Corebay(mut corebay) => corebay.stop()?,
            Target::Inside(inside) => inside.stop(&self.guest)?,
            Target::Nvmet(_) => nvmet::remove(&self.guest)?,
        }
        Ok(self.guest)
    }

    /// Where the target is and what it exports.
    pub fn endpoint(&self) -> &Endpoint {
        match &self.target {
            Target::Corebay(corebay) => corebay.endpoint(),
            Target::Inside(inside) => inside.endpoint(),
            Target::Nvmet(endpoint) => endpoint,
        }
    }

    /// The Linux host's initiator.
    pub fn host(&self) -> Initiator<'_> {
        Initiator::new(&self.guest)
    }

    /// Connects to the target's first address, with further options of nvme-cli.
    pub fn connect(&self, options: &str) -> Result<Controller> {
        self.host()
            .connect(self.endpoint().address(), crate::endpoint::PORT, options)
    }

    /// Connects and gives the block device of a namespace.
    pub fn attach(&self, nsid: u32, options: &str) -> Result<(Controller, String)> {
        let controller = self.connect(options)?;
        let device = self.host().device(&controller, nsid)?;
        Ok((controller, device))
    }

    /// Whether the target is the kernel's own.
    pub fn is_peer(&self) -> bool {
        matches!(self.target, Target::Nvmet(_))
    }

    /// The corebay process, for tests that end and restart it.
    pub fn corebay(&mut self) -> Result<&mut Corebay> {
        match &mut self.target {
            Target::Corebay(corebay) => Ok(corebay),
            _ => bail!("this test needs a corebay process beside the guest"),
        }
    }

    /// corebay within the guest, over its drives.
    pub fn inside(&self) -> Result<&Inside> {
        match &self.target {
            Target::Inside(inside) => Ok(inside),
            _ => bail!("this test needs a guest with drives"),
        }
    }

    /// Runs a bash script about one namespace; it knows `$D`, `$NSID`, `$B`, `$N`
    /// and the helpers of
    /// `scripts/device.sh`.
    pub fn device_script(&self, device: &str, nsid: u32, script: &str) -> Result<String> {
        let namespace = self.endpoint().namespace(nsid);
        let (block, blocks) = (namespace.block, namespace.blocks());
        let helpers = include_str!("../scripts/device.sh");
        let known = format!("D={device}\nNSID={nsid}\nB={block}\nN={blocks}\n");
        let whole = format!("{known}{helpers}\n{script}");
        let output = self.guest.attempt(&whole, Duration::from_secs(180))?;
        output
            .success()
            .with_context(|| format!("on {device}, NSID {nsid}"))
    }

    /// Runs a bash script that knows the helpers of `scripts/device.sh` but no device.
    pub fn helper_script(&self, script: &str) -> Result<String> {
        let whole = format!("B=1\n{}\n{script}", include_str!("../scripts/device.sh"));
        self.guest
            .attempt(&whole, Duration::from_secs(90))?
            .success()
    }

    /// Undoes what a test did in the guest; gives the kernel's messages of that time.
    fn clean(&mut self) -> Result<String> {
        if let Target::Corebay(corebay) = &mut self.target {
            corebay.check()?;
        }
        self.guest
            .run(
                "mountpoint -q /mnt && umount /mnt
                 nvme disconnect-all || exit
                 left=$(cd /sys/class/nvme; grep -lxs tcp */transport)
                 [ -z \"$left\" ] || { echo \"left: $left\"; exit 1; }",
            )
            .context("after the test")?;
        if let Target::Inside(inside) = &self.target {
            inside.stop(&self.guest)?;
        }
        self.guest.take_kernel_log()
    }

    fn usable(&mut self) -> bool {
        self.guest.answers() && self.clean().is_ok()
    }

    /// What helps to understand a failure: what guest and target said; the guest's log where it could
    /// still be asked for it.
    fn evidence(&mut self, kernel_log: Option<&str>) -> String {
        let mut text = String::new();
        if let Some(log) = kernel_log {
            text += &format!("\n  guest kernel:\n{}", process::tail(log, 25));
        } else {
            text += &format!("\n  guest console:\n{}", self.guest.console());
            if let Some(why) = self.guest.why_it_ended() {
                text += &format!("\n  {why}");
            }
        }
        if let Target::Corebay(corebay) = &self.target {
            let said = corebay.output();
            let since = said.get(self.corebay_said..).unwrap_or(&said);
            text += &format!("\n  corebay:\n{}", process::tail(since, 15));
        }
        if let Target::Inside(inside) = &self.target {
            let said = inside.output(&self.guest);
            text += &format!("\n  corebay:\n{}", process::tail(&said, 15));
        }
        text
    }
}

/// How many tests went how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Passed.
    pub passed: u32,
    /// Failed.
    pub failed: u32,
    /// Not run, with a reason printed.
    pub skipped: u32,
}

/// Which tests to run: those whose name holds one of these words; none means all.
pub fn selection(filters: &[String], peer: &Peer) -> Vec<(Group, Vec<Case>)> {
    let chosen = |group: &Group, case: &Case| {
        let name = format!("{}::{}", group.name, case.name);
        let named = filters.is_empty() || filters.iter().any(|filter| name.contains(filter));
        named && (case.peer || matches!(peer, Peer::Corebay(_)))
    };
    let mut selected = Vec::new();
    for group in cases::groups() {
        let cases: Vec<Case> = group
            .cases
            .iter()
            .filter(|case| chosen(&group, case))
            .copied()
            .collect();
        if !cases.is_empty() {
            selected.push((group, cases));
        }
    }
    selected
}

/// Runs the selected tests, group after group, and prints each one's result.
pub fn run(image: &Image, peer: &Peer, filters: &[String]) -> Tally {
    let mut tally = Tally::default();
    let mut guest = None;
    for (group, cases) in selection(filters, peer) {
        let mut lab = None;
        for case in cases {
            let mut tries = 0;
            let (start, result) = loop {
                let ready = lab
                    .take()
                    .map_or_else(|| new_lab(image, peer, &group, guest.take()), Ok);
                let start = Instant::now();
                tries += 1;
                match ready.map(|ready| run_case(ready, &case)) {
                    Ok(Run::Fell(why)) if tries < CASE_TRIES => {
                        println!("    {}::{}: {why}: run again", group.name, case.name);
                    }
                    Ok(Run::Fell(why)) => {
                        break (start, Err(anyhow::anyhow!("{why}, {tries} times")));
                    }
                    Ok(Run::Ended(result, left)) => {
                        lab = left.map(|left| *left);
                        break (start, result);
                    }
                    Err(error) => break (start, Err(error)),
                }
            };
            report(&group, &case, start, &result);
            match result {
                Ok(()) => tally.passed += 1,
                Err(_) => tally.failed += 1,
            }
        }
        if let Some(lab) = lab.take() {
            match lab.end() {
                Ok(left) => guest = Some(left),
                Err(error) => println!("    {}: the target did not end: {error:#}", group.name),
            }
        }
    }
    tally
}

fn report(group: &Group, case: &Case, start: Instant, result: &Result<()>) {
    let seconds = start.elapsed().as_secs_f32();
    let outcome = if result.is_ok() { "ok" } else { "FAILED" };
    println!(
        "guest {}::{} ... {outcome} ({seconds:.1} s)",
        group.name, case.name
    );
    if let Err(error) = result {
        println!("  {}\n", format!("{error:#}").replace('\n', "\n  "));
    }
}

fn new_lab(image: &Image, peer: &Peer, group: &Group, guest: Option<Guest>) -> Result<Lab> {
    let loopback = machine::loopback();
    let guest = match guest.filter(|guest| guest.hardware() == group.hardware) {
        Some(guest) => guest,
        None => {
            let start = Instant::now();
            let guest = Guest::boot_with(image, loopback, group.hardware)
                .context("the guest did not start")?;
            println!(
                "    guest ready after {:.1} s",
                start.elapsed().as_secs_f32()
            );
            guest
        }
    };
    let lab = Lab::new(guest, peer, group, loopback).context("the target did not start")?;
    let _ = lab.guest.take_kernel_log();
    Ok(lab)
}

/// How often a test is begun whose guest falls.
const CASE_TRIES: u32 = 3;

/// How a test that was begun went.
enum Run {
    /// To its end; with the lab if it can serve the next one.
    Ended(Result<()>, Option<Box<Lab>>),
    /// The guest fell, not what is tested; and how.
    Fell(String),
}

/// Runs one test.
fn run_case(mut lab: Lab, case: &Case) -> Run {
    lab.corebay_said = match &lab.target {
        Target::Corebay(corebay) => corebay.output().len(),
        _ => 0,
    };
    let (result, log) = match (case.body)(&mut lab).and_then(|()| lab.clean()) {
        Ok(log) => (check_kernel_log(&log, case.io_errors), Some(log)),
        Err(error) => (Err(error), lab.guest.take_kernel_log().ok()),
    };
    let Err(error) = result else {
        return Run::Ended(Ok(()), Some(Box::new(lab)));
    };
    if let Some(why) = lab.guest.fell() {
        return Run::Fell(why);
    }
    if let Some(why) = log.as_deref().and_then(emulator_failed) {
        return Run::Fell(why.to_owned());
    }
    let error = anyhow::anyhow!("{error:#}{}", lab.evidence(log.as_deref()));
    let left = lab.usable().then(|| Box::new(lab));
    Run::Ended(Err(error), left)
}

/// The first line with a word, and those before it that say what it is about.
fn around(log: &str, word: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let at = lines.iter().position(|line| line.contains(word));
    let at = at.unwrap_or_default();
    lines[at.saturating_sub(4)..lines.len().min(at + 1)].join("\n")
}

/// How the emulator failed the guest, by the kernel's own messages. Where the machine beneath has much
/// else to do, a processor does nothing for some twenty seconds: connections time out then, whoever is at
/// their other end. And an emulated processor may be interrupted with flags that none can have (RFLAGS bits
/// 22 and up are zero); the kernel falls over them.
fn emulator_failed(log: &str) -> Option<&'static str> {
    let mut lines = log.lines();
    lines.find_map(|line| {
        let flags = line.split_once("EFLAGS: ").map(|(_, rest)| rest);
        let flags = flags.and_then(|rest| rest.split_whitespace().next());
        let flags = flags.and_then(|hex| u64::from_str_radix(hex, 16).ok());
        if line.contains("rcu") && line.contains("detected stall") {
            Some("the emulated processors stood still (RCU stall)")
        } else if flags.is_some_and(|flags| flags >> 22 != 0) {
            Some("an emulated processor had impossible flags")
        } else {
            None
        }
    })
}

/// The kernel must not complain: never about itself, and about I/O only where the test provokes it.
fn check_kernel_log(log: &str, io_errors: bool) -> Result<()> {
    const NEVER: &[&str] = &[
        "BUG:",
        "WARNING:",
        "Oops",
        "Call Trace",
        "blocked for more than",
        // A drive reached for memory that was never mapped for it.
        "DMAR: DRHD: handling fault",
    ];
    const IO: &[&str] = &[
        "I/O error",
        "digest error",
        "lost async page write",
        "Corruption",
    ];
    let banned = NEVER
        .iter()
        .chain(if io_errors { [].iter() } else { IO.iter() });
    for word in banned {
        ensure!(
            !log.contains(word),
            "the guest's kernel says: {}",
            around(log, word)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::emulator_failed;

    #[test]
    fn only_what_no_processor_does_is_laid_on_the_emulator() {
        for (log, failed) in [
            ("[  1.0] RSP: 0018:ffa00000008e38b0 EFLAGS: 059f7242", true),
            ("[  1.0] RSP: 0018:ffa00000008e38b0 EFLAGS: 00010246", false),
            (
                "[  1.0] RSP: 002b:00007ff97fbfb768 EFLAGS: 00000206 ORIG_RAX: 000000000000014c",
                false,
            ),
            (
                "[  1.0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
                true,
            ),
            ("[  1.0] rcu: Hierarchical SRCU implementation.", false),
            ("[  1.0] nvme0n1: I/O error", false),
        ] {
            assert_eq!(emulator_failed(log).is_some(), failed, "{log}");
        }
    }
}
