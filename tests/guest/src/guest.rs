//! Owns a running guest: the QEMU process, its folder and its agent; all gone when dropped.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tempfile::TempDir;

use crate::agent::{Agent, Job, Output};
use crate::hardware::Hardware;
use crate::image::Image;
use crate::monitor::Monitor;
use crate::process::{self, Process};

/// Memory of a guest, MiB.
pub const MEMORY_MIB: u64 = 1024;
const PROCESSORS: u32 = 2;
/// A boot takes 5 s alone and much longer beside a compiler.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// How often a guest is started before its failure counts. The emulated processors do not always see
/// at once the instructions that the kernel patches while it boots, and it may panic (an `int3` oops);
/// nothing of corebay runs in it by then.
const BOOT_TRIES: u32 = 3;
/// A short script's limit; under load everything is slow.
const SCRIPT_LIMIT: Duration = Duration::from_secs(90);

/// A running guest.
pub struct Guest {
    qemu: Process,
    agent: Arc<Agent>,
    hardware: Hardware,
    folder: TempDir,
}

impl Guest {
    /// Boots a guest that reaches the host's addresses in the /24 of `loopback` under their own names.
    pub fn boot(image: &Image, loopback: Ipv4Addr) -> Result<Guest> {
        Guest::boot_with(image, loopback, Hardware::Host(MEMORY_MIB))
    }

    /// As [`Guest::boot`], with the memory and the drives that targets inside the guest need.
    pub fn boot_with(image: &Image, loopback: Ipv4Addr, hardware: Hardware) -> Result<Guest> {
        let mut tries = 1;
        loop {
            match Guest::boot_once(image, loopback, hardware) {
                Err(Boot::Panicked(line)) if tries < BOOT_TRIES => {
                    println!("    the guest's kernel panicked at boot ({line}): started again");
                    tries += 1;
                }
                Err(Boot::Panicked(line)) => {
                    bail!("the guest's kernel panicked {tries} times at boot: {line}")
                }
                Err(Boot::Failed(error)) => return Err(error),
                Ok(guest) => return Ok(guest),
            }
        }
    }

    fn boot_once(image: &Image, loopback: Ipv4Addr, hardware: Hardware) -> Result<Guest, Boot> {
        let folder = TempDir::with_prefix("corebay-guest-")?;
        fs::create_dir_all(folder.path().join("share/jobs"))?;
        let program = process::find("qemu-system-x86_64").context("QEMU is not installed")?;
        let arguments = arguments(image, folder.path(), loopback, hardware)?;
        let mut qemu = Process::start(&program, &arguments, &folder.path().join("qemu.log"))?;
        let start = Instant::now();
        let stream = loop {
            qemu.check_running()?;
            match UnixStream::connect(folder.path().join("agent")) {
                Ok(stream) => break stream,
                Err(error) if start.elapsed() > BOOT_LIMIT => {
                    let error = anyhow::Error::new(error);
                    return Err(error.context("QEMU opens no agent socket").into());
                }
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        };
        let (agent, ready) = Agent::new(stream, folder.path().join("share/jobs"))?;
        while ready.recv_timeout(Duration::from_millis(200)).is_err() {
            let console = || console(folder.path());
            // A panic ends the machine.
            if let Err(error) = qemu.check_running().with_context(console) {
                return Err(panic_line(folder.path()).map_or(Boot::Failed(error), Boot::Panicked));
            }
            if start.elapsed() > BOOT_LIMIT {
                let limit = BOOT_LIMIT.as_secs();
                let error = anyhow!("the guest did not start in {limit} s: {}", console());
                return Err(error.into());
            }
        }
        Ok(Guest {
            qemu,
            agent,
            hardware,
            folder,
        })
    }

    /// What it is made of.
    pub fn hardware(&self) -> Hardware {
        self.hardware
    }

    /// QEMU's monitor: takes drives out and puts them back.
    pub fn monitor(&self) -> Result<Monitor> {
        Monitor::connect(&self.folder.path().join("monitor"))
    }

    /// Runs a short bash script; fails unless it succeeds. Gives its standard output.
    pub fn run(&self, script: &str) -> Result<String> {
        self.run_within(script, SCRIPT_LIMIT)
    }

    /// As [`Guest::run`], with its own time limit.
    pub fn run_within(&self, script: &str, limit: Duration) -> Result<String> {
        self.attempt(script, limit)?
            .success()
            .with_context(|| format!("in the guest: {}", process::tail(script, 8)))
    }

    /// Runs a script that may fail.
    pub fn attempt(&self, script: &str, limit: Duration) -> Result<Output> {
        self.start(script, limit)?
            .wait()
            .with_context(|| format!("in the guest: {}", process::tail(script, 8)))
    }

    /// Starts a script and goes on.
    pub fn start(&self, script: &str, limit: Duration) -> Result<Job> {
        self.agent.start(script, limit)
    }

    /// Runs a script again and again until it succeeds.
    pub fn until(&self, script: &str, limit: Duration) -> Result<String> {
        let start = Instant::now();
        loop {
            let output = self.attempt(script, SCRIPT_LIMIT)?;
            if output.status == 0 || start.elapsed() > limit {
                let context =
                    || format!("not so after {} s in the guest: {script}", limit.as_secs());
                return output.success().with_context(context);
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// The folder that the guest sees as `/share`.
    pub fn share(&self) -> PathBuf {
        self.folder.path().join("share")
    }

    /// Whether the guest still answers.
    pub fn answers(&mut self) -> bool {
        self.qemu.check_running().is_ok()
            && self
                .attempt("true", Duration::from_secs(5))
                .is_ok_and(|output| output.status == 0)
    }

    /// Why the machine has ended, if it has.
    pub fn why_it_ended(&mut self) -> Option<String> {
        let ended = self.qemu.check_running().err();
        ended.map(|error| format!("{error:#}"))
    }

    /// The kernel's messages since the last call.
    pub fn take_kernel_log(&self) -> Result<String> {
        self.run("exec dmesg --read-clear")
    }

    /// How the guest itself fell, if it did: its kernel panicked, or QEMU crashed. Nothing that a target
    /// answers and nothing that a program in the guest does may bring either down, and whatever does so
    /// does it again.
    pub fn fell(&mut self) -> Option<String> {
        if let Some(line) = panic_line(self.folder.path()) {
            let console = process::tail(&console_text(self.folder.path()), 60);
            return Some(format!(
                "the guest's kernel panicked ({line}):\n{console}\n"
            ));
        }
        // Its end is seen late where a core is written.
        let crashed = !self.answers() && self.qemu.crashed(Duration::from_secs(20));
        crashed.then(|| "QEMU crashed".to_owned())
    }

    /// The last lines on the guest's console.
    pub fn console(&self) -> String {
        console(self.folder.path())
    }
}

/// Why a guest did not start.
enum Boot {
    /// Its kernel panicked, and said this.
    Panicked(String),
    /// Whatever else: it would fail again.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for Boot {
    fn from(error: anyhow::Error) -> Boot {
        Boot::Failed(error)
    }
}

impl From<std::io::Error> for Boot {
    fn from(error: std::io::Error) -> Boot {
        Boot::Failed(error.into())
    }
}

/// The line of the console that says why the kernel panicked, if it did.
fn panic_line(folder: &Path) -> Option<String> {
    let text = console_text(folder);
    let line = text.lines().find(|line| line.contains("Kernel panic"))?;
    Some(line.trim().to_owned())
}

fn console(folder: &Path) -> String {
    process::tail(&console_text(folder), 25)
}

/// All that the guest has said on its console.
fn console_text(folder: &Path) -> String {
    let bytes = fs::read(folder.join("console")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn arguments(
    image: &Image,
    folder: &Path,
    loopback: Ipv4Addr,
    hardware: Hardware,
) -> Result<Vec<String>> {
    let at = |name: &str| folder.join(name).display().to_string();
    let [_, b, c, _] = loopback.octets();
    let identity = format!(
        "lab.name=host-{b}-{c} lab.loopback=127.{b}.{c}.0/24 \
         lab.hostid=5f1a7e00-0000-4000-8000-0000{b:04x}{c:04x}"
    );
    let machine = "-M q35 -accel tcg,thread=multi,tb-size=512 -cpu max -nodefaults -no-user-config \
                   -display none -no-reboot";
    let devices = "-device virtio-serial-pci -netdev user,id=net0,ipv6=off \
                   -device virtio-net-pci,netdev=net0,romfile= -device virtio-rng-pci \
                   -device virtserialport,chardev=agent,name=lab.agent";
    let words =
        |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
    let mut arguments = words(machine);
    // An IOMMU is for the devices that follow it.
    arguments.extend(hardware.arguments(folder)?);
    arguments.extend(words(devices));
    // On the console only what is grave: each character of it stops the emulated machine for a while. The
    // tests read the rest of the kernel's messages from its log.
    let root = image.root.display();
    let local = "security_model=none,multidevs=remap";
    for (option, value) in [
        ("-smp", PROCESSORS.to_string()),
        ("-m", format!("{}M", hardware.memory_mib())),
        ("-kernel", image.kernel.display().to_string()),
        ("-initrd", image.initramfs.display().to_string()),
        (
            "-append",
            format!(
                "console=ttyS0 loglevel=2 panic=-1 mitigations=off nokaslr tsc=reliable audit=0 \
                 no_timer_check nowatchdog rcupdate.rcu_expedited=1 {} {identity}",
                hardware.kernel_arguments()
            ),
        ),
        ("-serial", format!("file:{}", at("console"))),
        (
            "-virtfs",
            format!("local,path={root},mount_tag=root,readonly=on,{local}"),
        ),
        (
            "-virtfs",
            format!("local,path={},mount_tag=share,{local}", at("share")),
        ),
        (
            "-chardev",
            format!("socket,id=agent,path={},server=on,wait=off", at("agent")),
        ),
        ("-qmp", format!("unix:{},server=on,wait=off", at("monitor"))),
    ] {
        arguments.extend([option.to_owned(), value]);
    }
    Ok(arguments)
}
