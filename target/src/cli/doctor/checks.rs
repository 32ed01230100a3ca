//! What `corebay doctor` looks at, in the files of `/sys` and `/proc`.
//!
//! Invariants: looking changes nothing; what cannot be found out is said to be so, never made up.

use std::{fs, path::Path};

use corebay_nvme::machine::{MachineDrive, all_users, drives};

/// The oldest kernel that everything here was tried on.
const KERNEL_MIN: (u32, u32) = (5, 15);

/// The locked memory that a small appliance needs: its buffers and its drives' queues.
const LOCKED_BYTES_MIN: u64 = 512 << 20;

/// Hugepages of 2 MiB for a gibibyte of buffers.
const HUGEPAGES_ADVISED: u64 = 512;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// As it should be.
    Good,
    /// It works, and could be better.
    Hint,
    /// NVMe drives in user space do not work without.
    Missing,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Of what.
    pub what: &'static str,
    /// How much it matters.
    pub grade: Grade,
    /// In words.
    pub said: String,
    /// The command that mends it, or what does where no command can.
    pub mend: Option<String>,
}

/// The machine that is looked at.
pub struct Machine<'a> {
    /// Where `/sys` and `/proc` lie.
    pub root: &'a Path,
    /// The limit of locked memory; `None` where there is none.
    pub locked_memory_bytes: Option<u64>,
}

impl Machine<'_> {
    fn text(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.root.join(path)).ok()?;
        Some(text.trim().to_owned())
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    fn count(&self, folder: &str) -> usize {
        fs::read_dir(self.root.join(folder)).map_or(0, Iterator::count)
    }
}

fn good(what: &'static str, said: impl Into<String>) -> Finding {
    Finding {
        what,
        grade: Grade::Good,
        said: said.into(),
        mend: None,
    }
}

fn hint(what: &'static str, said: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding {
        what,
        grade: Grade::Hint,
        said: said.into(),
        mend: Some(mend.into()),
    }
}

fn missing(what: &'static str, said: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding {
        grade: Grade::Missing,
        ..hint(what, said, mend)
    }
}

/// All there is to find.
pub fn all(machine: &Machine<'_>) -> Vec<Finding> {
    let drives = drives(machine.root);
    let mut findings = vec![
        kernel(machine),
        io_uring(machine),
        iommu(machine),
        vfio(machine),
        hugepages(machine),
        locked_memory(machine),
        isolation(machine),
        frequency(machine),
        numa(machine, &drives),
    ];
    findings.extend(drives.iter().map(|one| drive(machine.root, one)));
    if drives.is_empty() {
        findings.push(good("drives", "the machine has no NVMe drives"));
    }
    findings
}

fn kernel(machine: &Machine<'_>) -> Finding {
    let Some(release) = machine.text("proc/sys/kernel/osrelease") else {
        return hint("kernel", "its version cannot be found out", "uname -r");
    };
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse().ok());
    let version = (next().unwrap_or(0), next().unwrap_or(0));
    match version >= KERNEL_MIN {
        true => good("kernel", release),
        false => hint(
            "kernel",
            format!("{release} is older than {}.{}", KERNEL_MIN.0, KERNEL_MIN.1),
            newer_kernel(machine),
        ),
    }
}

/// What installs a newer kernel, as far as the distribution has one for this release of it.
fn newer_kernel(machine: &Machine<'_>) -> String {
    let release = machine.text("etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        let mut lines = release.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_default().trim_matches('"').to_owned()
    };
    match field("ID").as_str() {
        "ubuntu" => format!(
            "apt-get update && apt-get install linux-generic-hwe-{} && reboot",
            field("VERSION_ID")
        ),
        "debian" => format!(
            "apt-get update && apt-get install -t {}-backports linux-image-amd64 && reboot",
            field("VERSION_CODENAME")
        ),
        "fedora" => "dnf upgrade kernel && reboot".to_owned(),
        _ => format!(
            "no command known here mends it: a release of the distribution whose kernel is {}.{} or newer \
             does",
            KERNEL_MIN.0, KERNEL_MIN.1
        ),
    }
}

fn io_uring(machine: &Machine<'_>) -> Finding {
    match machine.number("proc/sys/kernel/io_uring_disabled") {
        None | Some(0) => good("io_uring", "allowed"),
        Some(_) => hint(
            "io_uring",
            "disabled: files and kernel block devices are served by a slower way",
            "sysctl kernel.io_uring_disabled=0",
        ),
    }
}

fn iommu(machine: &Machine<'_>) -> Finding {
    let groups = machine.count("sys/kernel/iommu_groups");
    if groups > 0 {
        return good("IOMMU", format!("on, {groups} groups"));
    }
    let cpu = machine.text("proc/cpuinfo").unwrap_or_default();
    let (setup, option) = match () {
        () if cpu.contains("GenuineIntel") => ("VT-d", "intel_iommu=on iommu=pt"),
        () if cpu.contains("AuthenticAMD") => ("AMD-Vi (IOMMU)", "iommu=pt"),
        () => ("the IOMMU", "iommu.passthrough=1"),
    };
    missing(
        "IOMMU",
        "off: a drive in user space could write anywhere in memory",
        format!(
            "{}; where it is still off then, no command mends it: turn {setup} on in the firmware's setup",
            on_the_command_line(option)
        ),
    )
}

/// The command that adds options to the kernel's command line.
fn on_the_command_line(options: &str) -> String {
    format!(
        "sed -i 's/^GRUB_CMDLINE_LINUX=\"/&{options} /' /etc/default/grub && update-grub && reboot"
    )
}

fn vfio(machine: &Machine<'_>) -> Finding {
    if machine.has("dev/vfio/vfio") && machine.has("sys/bus/pci/drivers/vfio-pci") {
        return good("VFIO", "vfio-pci is loaded");
    }
    missing(
        "VFIO",
        "vfio-pci is not loaded",
        "modprobe vfio-pci && echo vfio-pci > /etc/modules-load.d/vfio-pci.conf",
    )
}

fn hugepages(machine: &Machine<'_>) -> Finding {
    let folder = "sys/kernel/mm/hugepages/hugepages-2048kB";
    let all = machine
        .number(&format!("{folder}/nr_hugepages"))
        .unwrap_or(0);
    let free = machine
        .number(&format!("{folder}/free_hugepages"))
        .unwrap_or(0);
    if free > 0 {
        let said = format!("{free} of {all} free, {} MiB", free * 2);
        return good("hugepages", said);
    }
    hint(
        "hugepages",
        match all {
            0 => "none reserved: buffers lie in ordinary pages".to_owned(),
            _ => format!("none of {all} is free"),
        },
        format!("sysctl vm.nr_hugepages={}", all + HUGEPAGES_ADVISED),
    )
}

fn locked_memory(machine: &Machine<'_>) -> Finding {
    match machine.locked_memory_bytes {
        None => good("locked memory", "unlimited"),
        Some(bytes) if bytes >= LOCKED_BYTES_MIN => {
            good("locked memory", format!("up to {} MiB", bytes >> 20))
        }
        Some(bytes) => hint(
            "locked memory",
            format!(
                "limited to {} KiB: drives reach no more than that, but for root",
                bytes >> 10
            ),
            "ulimit -l unlimited (in a systemd unit: LimitMEMLOCK=infinity)",
        ),
    }
}

fn isolation(machine: &Machine<'_>) -> Finding {
    match machine.text("sys/devices/system/cpu/isolated") {
        Some(cores) if !cores.is_empty() => good("cores", format!("{cores} are isolated")),
        _ => hint(
            "cores",
            "none is isolated: other programs and interrupts disturb the reactors",
            format!(
                "{} (2-3: the cores of reactor.cores)",
                on_the_command_line("isolcpus=managed_irq,domain,2-3 nohz_full=2-3")
            ),
        ),
    }
}

fn frequency(machine: &Machine<'_>) -> Finding {
    match machine.text("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") {
        None => good("CPU frequency", "not governed by this kernel"),
        Some(governor) if governor == "performance" => good("CPU frequency", governor),
        Some(governor) => hint(
            "CPU frequency",
            format!("governed by \"{governor}\": the first I/Os after a pause are slow"),
            "cpupower frequency-set -g performance",
        ),
    }
}

fn numa(machine: &Machine<'_>, drives: &[MachineDrive]) -> Finding {
    let nodes: Vec<(u32, String)> = (0..64)
        .filter_map(|node| {
            let cores = machine.text(&format!("sys/devices/system/node/node{node}/cpulist"))?;
            Some((node, cores))
        })
        .collect();
    if nodes.len() < 2 {
        return good("NUMA", "one node");
    }
    let said: Vec<String> = nodes
        .iter()
        .map(|(node, cores)| format!("node {node} has cores {cores}"))
        .collect();
    let said = said.join(", ");
    let mut near: Vec<u32> = drives.iter().filter_map(|drive| drive.numa_node).collect();
    near.sort_unstable();
    near.dedup();
    if near.len() < 2 {
        return good("NUMA", said);
    }
    let own = nodes.iter().filter(|(node, _)| near.contains(node));
    let each: Vec<String> = own
        .map(|(node, cores)| format!("node {node}: {cores}"))
        .collect();
    hint(
        "NUMA",
        format!("drives lie at nodes {near:?}; {said}"),
        format!(
            "no command mends it: one corebay for each node does, with the drives and the cores of that \
             node in its configuration (reactor.cores; {}), or drives in slots of one node",
            each.join("; ")
        ),
    )
}

fn drive(root: &Path, drive: &MachineDrive) -> Finding {
    let address = &drive.address;
    let driver = drive.driver.as_deref().unwrap_or("no driver");
    if drive.is_lent() {
        return good("drive", format!("{address} is bound to vfio-pci"));
    }
    let users = all_users(root, drive);
    if !users.is_empty() {
        let said = format!("{address} stays the kernel's: {}", users.join(", "));
        return good("drive", said);
    }
    if !drive.group_mates.is_empty() {
        return hint(
            "drive",
            format!(
                "{address} shares its IOMMU group with {}",
                drive.group_mates.join(", ")
            ),
            "no command mends it: another slot does, or ACS, turned on in the firmware's setup",
        );
    }
    hint(
        "drive",
        format!("{address} is free, and bound to {driver}"),
        format!("corebay drives bind {address}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(files: &[(&str, &str)], locked: Option<u64>) -> Vec<Finding> {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        all(&Machine {
            root: folder.path(),
            locked_memory_bytes: locked,
        })
    }

    fn of<'a>(findings: &'a [Finding], what: &str) -> &'a Finding {
        findings.iter().find(|found| found.what == what).unwrap()
    }

    #[test]
    fn a_machine_that_has_everything() {
        let findings = with(
            &[
                ("proc/sys/kernel/osrelease", "6.12.1-amd64\n"),
                ("proc/sys/kernel/io_uring_disabled", "0\n"),
                ("sys/kernel/iommu_groups/0/type", "DMA"),
                ("dev/vfio/vfio", ""),
                ("sys/bus/pci/drivers/vfio-pci/new_id", ""),
                (
                    "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
                    "512\n",
                ),
                (
                    "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
                    "500\n",
                ),
                ("sys/devices/system/cpu/isolated", "2-3\n"),
                (
                    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
                    "performance\n",
                ),
                ("sys/devices/system/node/node0/cpulist", "0-3\n"),
            ],
            None,
        );
        for found in &findings {
            assert_eq!(
                (found.grade, &found.mend),
                (Grade::Good, &None),
                "{found:?}"
            );
        }
    }

    #[test]
    fn each_lack_has_its_command() {
        let findings = with(
            &[
                ("proc/sys/kernel/osrelease", "5.4.0-generic\n"),
                (
                    "etc/os-release",
                    "NAME=\"Ubuntu\"\nVERSION_ID=\"20.04\"\nID=ubuntu\n",
                ),
                ("proc/sys/kernel/io_uring_disabled", "2\n"),
                ("proc/cpuinfo", "vendor_id : GenuineIntel\n"),
                (
                    "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
                    "8\n",
                ),
                (
                    "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
                    "0\n",
                ),
                (
                    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
                    "powersave\n",
                ),
                ("sys/bus/pci/devices/0000:01:00.0/class", "0x010802\n"),
                ("sys/bus/pci/devices/0000:01:00.0/vendor", "0x144d\n"),
                ("sys/bus/pci/devices/0000:01:00.0/device", "0xa808\n"),
            ],
            Some(8 << 20),
        );
        let mends = |what, fragment: &str| {
            let found = of(&findings, what);
            let mend = found.mend.as_deref().unwrap_or_default();
            assert!(mend.contains(fragment), "{found:?}");
        };
        mends(
            "kernel",
            "apt-get install linux-generic-hwe-20.04 && reboot",
        );
        mends("io_uring", "sysctl kernel.io_uring_disabled=0");
        mends(
            "IOMMU",
            "sed -i 's/^GRUB_CMDLINE_LINUX=\"/&intel_iommu=on iommu=pt /' /etc/default/grub && update-grub",
        );
        mends("VFIO", "modprobe vfio-pci");
        mends("hugepages", "sysctl vm.nr_hugepages=520");
        mends("locked memory", "ulimit -l unlimited");
        mends("cores", "isolcpus=");
        mends("CPU frequency", "performance");
        mends("drive", "corebay drives bind 0000:01:00.0");
        assert_eq!(of(&findings, "IOMMU").grade, Grade::Missing);
        assert_eq!(of(&findings, "hugepages").grade, Grade::Hint);
    }

    /// Each remedy is a command, or says that none is and what mends it instead.
    #[test]
    fn what_no_command_mends_is_said_to_be_so() {
        let drive = |address: &'static str, node: &'static str| {
            let file = move |name: &str| format!("sys/bus/pci/devices/{address}/{name}");
            [
                (file("class"), "0x010802\n"),
                (file("vendor"), "0x144d\n"),
                (file("device"), "0xa808\n"),
                (file("numa_node"), node),
            ]
        };
        let node = |node| format!("sys/devices/system/node/node{node}/cpulist");
        let mut files = Vec::from(drive("0000:01:00.0", "0\n"));
        files.extend(drive("0000:81:00.0", "1\n"));
        files.extend([(node(0), "0-3\n"), (node(1), "4-7\n")]);
        let os = [
            (
                "ID=debian\nVERSION_CODENAME=bullseye\n",
                "-t bullseye-backports ",
            ),
            ("ID=other\n", "no command"),
        ];
        for (release, expected) in os {
            let mut files: Vec<(&str, &str)> =
                files.iter().map(|(path, text)| (&**path, *text)).collect();
            files.push(("proc/sys/kernel/osrelease", "5.10.0\n"));
            files.push(("etc/os-release", release));
            let findings = with(&files, None);
            let kernel = of(&findings, "kernel").mend.clone().unwrap();
            assert!(kernel.contains(expected), "{kernel}");
            let numa = of(&findings, "NUMA").mend.clone().unwrap();
            assert!(
                numa.starts_with("no command mends it: one corebay for each node"),
                "{numa}"
            );
            assert!(numa.contains("node 0: 0-3; node 1: 4-7"), "{numa}");
        }
    }

    #[test]
    fn a_drive_that_shares_its_group_takes_another_slot() {
        use corebay_nvme::machine::MachineDrive;
        let shared = MachineDrive {
            address: "0000:01:00.0".into(),
            group_mates: vec!["0000:01:00.1".into()],
            ..MachineDrive::default()
        };
        let mend = drive(Path::new("/nonexistent"), &shared).mend.unwrap();
        assert!(
            mend.starts_with("no command mends it: another slot"),
            "{mend}"
        );
    }
}
