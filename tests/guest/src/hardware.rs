//! Owns what a guest is made of beside its processors: memory, and the IOMMU with NVMe drives behind it.
//!
//! The drives of [`Hardware::Drives`]:
//! - [`PLAIN`]: one namespace of 512-byte blocks, with a volatile write cache;
//! - [`TWO_NAMESPACES`]: one of 512-byte blocks, one of 4096-byte blocks;
//! - [`IN_A_SLOT`]: 4096-byte blocks, no write cache, in a slot from which it can be taken;
//! - [`SHARED`]: namespaces with metadata, and one that comes and goes by its second controller;
//! - [`TWIN`] and one more function beside it, which share an IOMMU group.

use std::fs::File;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

/// The kinds of guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hardware {
    /// A host without drives of its own, with this much memory in MiB.
    Host(u64),
    /// A machine with an IOMMU and NVMe drives.
    Drives,
}

/// A drive of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Drive {
    /// Where the guest finds it.
    pub address: &'static str,
    /// What it calls itself.
    pub serial: &'static str,
    /// The namespaces' block sizes, by NSID from 1.
    pub blocks: &'static [u64],
    /// What QEMU is told of the namespaces besides; nothing where there are fewer.
    formats: &'static [&'static str],
    write_cache: bool,
    place: &'static str,
}

/// Size of each namespace, MiB.
pub const NAMESPACE_MIB: u64 = 128;

/// The first drive.
pub const PLAIN: Drive = Drive {
    address: "0000:00:10.0",
    serial: "LAB-PLAIN",
    blocks: &[512],
    formats: &[],
    write_cache: true,
    place: "bus=pcie.0,addr=0x10",
};

/// The drive with two namespaces.
pub const TWO_NAMESPACES: Drive = Drive {
    address: "0000:00:12.0",
    serial: "LAB-TWO",
    blocks: &[512, 4096],
    formats: &[",eui64=0x0025385b71b0a4f9"],
    write_cache: true,
    place: "bus=pcie.0,addr=0x12",
};

/// The drive that is taken out and put back.
pub const IN_A_SLOT: Drive = Drive {
    address: "0000:01:00.0",
    serial: "LAB-SLOT",
    blocks: &[4096],
    formats: &[],
    write_cache: false,
    place: "bus=lab-bay",
};

/// The drive whose namespaces [`SECOND_WAY`] attaches and detaches: 4096-byte blocks, 512-byte blocks with
/// metadata in a separate buffer, 512-byte blocks with metadata within them.
pub const SHARED: Drive = Drive {
    address: "0000:00:14.0",
    serial: "LAB-SHARED",
    blocks: &[4096, 512, 512],
    formats: &["", ",ms=8,mset=0", ",ms=8,mset=1"],
    write_cache: true,
    place: "subsys=lab-shared,bus=pcie.0,addr=0x14",
};

/// The second controller of [`SHARED`].
pub const SECOND_WAY: Drive = Drive {
    address: "0000:00:15.0",
    serial: SHARED.serial,
    blocks: &[],
    formats: &[],
    write_cache: true,
    place: "subsys=lab-shared,bus=pcie.0,addr=0x15",
};

/// A drive whose IOMMU group is not its own.
pub const TWIN: Drive = Drive {
    address: "0000:00:13.0",
    serial: "LAB-TWIN",
    blocks: &[],
    formats: &[],
    write_cache: true,
    place: "bus=pcie.0,addr=0x13.0,multifunction=on",
};

const SECOND_TWIN: Drive = Drive {
    address: "0000:00:13.1",
    serial: "LAB-TWIN-2",
    place: "bus=pcie.0,addr=0x13.1",
    ..TWIN
};

const ALL: [Drive; 7] = [
    PLAIN,
    TWO_NAMESPACES,
    IN_A_SLOT,
    SHARED,
    SECOND_WAY,
    TWIN,
    SECOND_TWIN,
];

/// The EUI-64 of the first namespace of [`TWO_NAMESPACES`], as the configuration spells it.
pub const EUI64: &str = "0025385b71b0a4f9";

/// Where the port is whose slot holds [`IN_A_SLOT`].
pub const SLOT_PORT: &str = "0000:00:11.0";

impl Hardware {
    /// Memory, MiB.
    pub fn memory_mib(self) -> u64 {
        match self {
            Hardware::Host(mib) => mib,
            Hardware::Drives => 1536,
        }
    }

    /// What the kernel is told.
    pub fn kernel_arguments(self) -> &'static str {
        match self {
            Hardware::Host(_) => "",
            Hardware::Drives => "intel_iommu=on iommu=nopt",
        }
    }

    /// QEMU's options; the drives' media are made in `folder`.
    pub fn arguments(self, folder: &Path) -> Result<Vec<String>> {
        if let Hardware::Host(_) = self {
            return Ok(Vec::new());
        }
        let fixed = "-device intel-iommu,intremap=on,caching-mode=on,aw-bits=48 \
                     -global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off \
                     -device pcie-root-port,id=lab-bay,bus=pcie.0,addr=0x11,chassis=1,slot=1 \
                     -device nvme-subsys,id=lab-shared,nqn=lab-shared";
        let mut arguments: Vec<String> = fixed.split_whitespace().map(str::to_owned).collect();
        for drive in ALL {
            arguments.extend(drive.arguments(folder)?);
        }
        Ok(arguments)
    }
}

impl Drive {
    /// The controller, as QEMU calls it.
    fn id(&self) -> String {
        format!("lab-{}", self.address.replace([':', '.'], "-"))
    }

    /// The medium of a namespace, as QEMU calls it.
    fn medium(&self, nsid: usize) -> String {
        format!("{}-{nsid}", self.serial)
    }

    fn arguments(&self, folder: &Path) -> Result<Vec<String>> {
        let mut arguments = Vec::new();
        for nsid in 1..=self.blocks.len() {
            let medium = self.medium(nsid);
            let file = folder.join(&medium);
            File::create(&file)?.set_len(NAMESPACE_MIB << 20)?;
            arguments.push("-blockdev".to_owned());
            arguments.push(
                json!({ "driver": "file", "node-name": medium, "aio": "threads",
                        "filename": file, "cache": { "no-flush": true } })
                .to_string(),
            );
        }
        arguments.push("-device".to_owned());
        if self.blocks.len() == 1 {
            arguments.push(format!("{},{}", self.controller(), self.namespace(1)));
            return Ok(arguments);
        }
        arguments.push(self.controller());
        for nsid in 1..=self.blocks.len() {
            let (id, namespace) = (self.id(), self.namespace(nsid));
            arguments.push("-device".to_owned());
            arguments.push(format!("nvme-ns,bus={id},nsid={nsid},{namespace}"));
        }
        Ok(arguments)
    }

    fn controller(&self) -> String {
        let (Drive { serial, place, .. }, id) = (self, self.id());
        // Twelve pairs of queues: enough for the kernel's processors and for ours.
        format!("nvme,id={id},serial={serial},max_ioqpairs=12,{place}")
    }

    fn namespace(&self, nsid: usize) -> String {
        let (medium, block) = (self.medium(nsid), self.blocks[nsid - 1]);
        let cache = if self.write_cache { "on" } else { "off" };
        let format = self.formats.get(nsid - 1).unwrap_or(&"");
        format!(
            "drive={medium},logical_block_size={block},physical_block_size={block},\
             write-cache={cache}{format}"
        )
    }

    /// What QEMU's monitor is told to put a drive of one namespace back.
    pub fn to_add(&self) -> Value {
        let mut arguments = serde_json::Map::new();
        let text = format!("driver={},{}", self.controller(), self.namespace(1));
        for (name, value) in text.split(',').filter_map(|option| option.split_once('=')) {
            let value = match value.parse::<u64>() {
                Ok(number) => json!(number),
                Err(_) => json!(value),
            };
            arguments.insert(name.to_owned(), value);
        }
        json!({ "execute": "device_add", "arguments": arguments })
    }

    /// What QEMU's monitor is told to take the drive out.
    pub fn to_remove(&self) -> Value {
        json!({ "execute": "device_del", "arguments": { "id": self.id() } })
    }
}
