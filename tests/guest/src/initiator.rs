//! Owns what a Linux host's administrator does in a guest: discover, connect, find devices, disconnect.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::endpoint::NQN;
use crate::guest::Guest;

/// Time for a device to appear or a controller to come back.
pub const SETTLE: Duration = Duration::from_secs(60);

/// A controller of the guest's kernel: `nvme0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// The name in `/dev` and `/sys/class/nvme`.
    pub name: String,
}

/// The initiator of one guest.
#[derive(Clone, Copy)]
pub struct Initiator<'a> {
    guest: &'a Guest,
}

impl<'a> Initiator<'a> {
    /// The initiator of `guest`.
    pub fn new(guest: &'a Guest) -> Initiator<'a> {
        Initiator { guest }
    }

    /// Runs an nvme-cli command that answers in JSON.
    pub fn json(&self, arguments: &str) -> Result<Value> {
        let text = self.guest.run(&format!("nvme {arguments} -o json"))?;
        serde_json::from_str(&text).with_context(|| format!("nvme {arguments} answered {text}"))
    }

    /// The discovery log, as nvme-cli shows it.
    pub fn discover(&self, address: Ipv4Addr, port: u16) -> Result<Value> {
        self.json(&format!("discover -t tcp -a {address} -s {port}"))
    }

    /// Connects to the lab's subsystem, with further options of nvme-cli, and waits until it is live.
    pub fn connect(&self, address: Ipv4Addr, port: u16, options: &str) -> Result<Controller> {
        self.connect_to(NQN, address, port, options)
    }

    /// Connects to any subsystem, with further options of nvme-cli, and waits until it is live.
    pub fn connect_to(
        &self,
        nqn: &str,
        address: Ipv4Addr,
        port: u16,
        options: &str,
    ) -> Result<Controller> {
        let script = format!(
            r#"said=$(nvme connect -t tcp -a {address} -s {port} -n {nqn} {options} -o json) || exit
               [[ $said =~ \"(nvme[0-9]+)\" ]] || {{ echo "no device in: $said"; exit 1; }}
               name=${{BASH_REMATCH[1]}}
               for i in $(seq 300); do
                 read -r state < /sys/class/nvme/$name/state
                 [ "$state" = live ] && echo $name && exit
                 sleep 0.2
               done
               echo "$name is $state after connect"; exit 1"#
        );
        let name = self.guest.run(&script)?;
        Ok(Controller { name })
    }

    /// Waits until the controller is live.
    pub fn wait_live(&self, controller: &Controller) -> Result<()> {
        let script = format!("grep -qx live /sys/class/nvme/{}/state", controller.name);
        self.guest
            .until(&script, SETTLE)
            .context("the controller did not become live")?;
        Ok(())
    }

    /// An attribute of the controller in sysfs.
    pub fn attribute(&self, controller: &Controller, name: &str) -> Result<String> {
        let text = self
            .guest
            .run(&format!("cat /sys/class/nvme/{}/{name}", controller.name))?;
        Ok(text.trim().to_owned())
    }

    /// The block device of a namespace of the controller's subsystem, once it is there.
    pub fn device(&self, controller: &Controller, nsid: u32) -> Result<String> {
        // The number behind the n is not the NSID, and heads are numbered by subsystem.
        let script = format!(
            "for subsystem in /sys/class/nvme-subsystem/*; do
               [ -e $subsystem/{} ] || continue
               for head in $subsystem/nvme*n*; do
                 [ \"$(cat $head/nsid 2>/dev/null)\" = {nsid} ] || continue
                 name=${{head##*/}}; [ -b /dev/$name ] && echo /dev/$name && exit 0
               done
             done
             exit 1",
            controller.name
        );
        let name = self.guest.until(&script, SETTLE);
        name.with_context(|| format!("no block device for NSID {nsid}"))
    }

    /// The names of all controllers.
    pub fn controllers(&self) -> Result<Vec<Controller>> {
        let names = self.guest.run("cd /sys/class/nvme && ls")?;
        Ok(names
            .split_whitespace()
            .map(|name| Controller {
                name: name.to_owned(),
            })
            .collect())
    }

    /// Disconnects everything and checks that it is gone.
    pub fn disconnect_all(&self) -> Result<()> {
        self.guest.run("nvme disconnect-all")?;
        let left = self.controllers()?;
        ensure!(
            left.is_empty(),
            "still there after disconnect-all: {left:?}"
        );
        Ok(())
    }
}
