//! Owns the kernel's own NVMe/TCP target inside a guest: the peer that corebay is compared with.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use crate::endpoint::{Endpoint, NQN, Namespace, PORT};
use crate::guest::Guest;

/// Makes the kernel's target export memory disks on the guest's own loopback.
pub fn export(guest: &Guest, namespaces: &[Namespace]) -> Result<Endpoint> {
    let addresses = vec![Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)];
    let mut script = format!(
        "set -e
         modprobe -a null_blk nvmet nvmet_tcp
         cd /sys/kernel/config/nvmet
         mkdir subsystems/{NQN}
         echo 1 > subsystems/{NQN}/attr_allow_any_host\n"
    );
    for namespace in namespaces {
        script += &namespace_script(namespace);
    }
    for (index, address) in addresses.iter().enumerate() {
        script += &format!(
            "port=ports/{}; mkdir $port
             echo tcp > $port/addr_trtype; echo ipv4 > $port/addr_adrfam
             echo {address} > $port/addr_traddr; echo {PORT} > $port/addr_trsvcid
             ln -s $PWD/subsystems/{NQN} $port/subsystems/{NQN}\n",
            index + 1
        );
    }
    guest
        .run(&script)
        .context("the kernel's target did not start")?;
    Ok(Endpoint {
        addresses,
        discovery_port: PORT,
        namespaces: namespaces.to_vec(),
    })
}

/// Takes away what [`export`] made.
pub fn remove(guest: &Guest) -> Result<()> {
    let script = format!(
        "cd /sys/kernel/config/nvmet
         rm -f ports/*/subsystems/*
         rmdir ports/* subsystems/{NQN}/namespaces/* subsystems/{NQN}
         rmdir ../nullb/lab*"
    );
    guest
        .run(&script)
        .context("the kernel's target did not go away")?;
    Ok(())
}

/// The script lines that make the memory disk `/dev/labNSID`.
pub fn disk_script(namespace: &Namespace) -> String {
    let Namespace {
        nsid, mib, block, ..
    } = namespace;
    format!(
        "disk=/sys/kernel/config/nullb/lab{nsid}; mkdir $disk
         echo {mib} > $disk/size; echo {block} > $disk/blocksize
         echo 1 > $disk/memory_backed; echo 1 > $disk/discard; echo 0 > $disk/irqmode
         echo 1 > $disk/power\n"
    )
}

fn namespace_script(namespace: &Namespace) -> String {
    let nsid = namespace.nsid;
    let disk = disk_script(namespace);
    format!(
        "{disk}
         ns=subsystems/{NQN}/namespaces/{nsid}; mkdir $ns
         echo /dev/lab{nsid} > $ns/device_path; echo 1 > $ns/enable\n"
    )
}
