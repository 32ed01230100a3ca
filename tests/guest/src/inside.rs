//! Owns corebay within a guest that has drives: installed once, started with a configuration, ended.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::agent::Output;
use crate::endpoint::{Endpoint, NQN, PORT};
use crate::guest::Guest;

/// Where it listens.
const ADDRESS: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// A start waits for the drives.
const START_LIMIT: Duration = Duration::from_secs(60);
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// Pages of 2 MiB set aside for its memory.
const HUGEPAGES: u32 = 96;

/// The program within a guest.
pub struct Inside {
    endpoint: Endpoint,
}

impl Inside {
    /// Copies the program into the guest, and sets the machine up as its manual says.
    pub fn install(guest: &Guest, program: &Path) -> Result<Inside> {
        fs::copy(program, guest.share().join("corebay")).context("copy corebay into the guest")?;
        guest
            .run(&format!(
                "set -e
                 cp /share/corebay /tmp/corebay
                 echo {HUGEPAGES} > /proc/sys/vm/nr_hugepages
                 modprobe -a nvme vfio-pci"
            ))
            .context("set the guest up for corebay")?;
        Ok(Inside {
            endpoint: Endpoint {
                addresses: vec![ADDRESS],
                discovery_port: PORT,
                namespaces: Vec::new(),
            },
        })
    }

    /// Where it listens.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Runs `corebay` with these arguments to its end.
    pub fn command(&self, guest: &Guest, arguments: &str) -> Result<Output> {
        guest.attempt(&format!("exec /tmp/corebay {arguments}"), COMMAND_LIMIT)
    }

    /// Starts `corebay serve` over these disks, in the configuration's words, as namespaces 1, 2, 3
    /// and so on; waits until it serves.
    pub fn serve(&self, guest: &Guest, disks: &[String]) -> Result<()> {
        let mut text = String::new();
        for (index, disk) in disks.iter().enumerate() {
            let nsid = index + 1;
            text += &format!("[[subsystem.namespace]]\nnsid = {nsid}\ndisk = \"d{nsid}\"\n");
            text += &format!("[[disk]]\nname = \"d{nsid}\"\n{disk}\n");
        }
        self.serve_with(guest, &text)
    }

    /// As [`serve`](Self::serve), with a configuration that goes on like this after its only subsystem.
    pub fn serve_with(&self, guest: &Guest, text: &str) -> Result<()> {
        let whole = format!(
            "data_dir = \"/tmp/data\"
             [reactor]
             cores = [0]
             memory = \"128MiB\"
             hugepages = \"require\"
             [[listener]]
             address = \"{ADDRESS}:{PORT}\"
             [[subsystem]]
             nqn = \"{NQN}\"
             allow_any_host = true\n{text}"
        );
        self.serve_file(guest, &whole)
    }

    /// As [`serve`](Self::serve), with a whole configuration.
    pub fn serve_file(&self, guest: &Guest, text: &str) -> Result<()> {
        fs::write(guest.share().join("corebay.toml"), text)?;
        guest.run(
            "ulimit -l unlimited
             rm -f /tmp/corebay.pid /tmp/corebay.status
             setsid sh -c '
               /tmp/corebay serve --config /share/corebay.toml & echo $! > /tmp/corebay.pid
               wait $!; echo $? > /tmp/corebay.status' > /tmp/corebay.log 2>&1 < /dev/null &
             until [ -s /tmp/corebay.pid ]; do sleep 0.02; done",
        )?;
        let ready = "kill -0 $(cat /tmp/corebay.pid) || exit 0; grep -q ready /tmp/corebay.log";
        let waited = guest.until(ready, START_LIMIT);
        let runs = waited.and_then(|_| self.check(guest));
        runs.with_context(|| format!("corebay in the guest says: {}", self.output(guest)))
    }

    /// Asks the running program for something by its command line, as in `pool status tank`; its answer.
    pub fn ask(&self, guest: &Guest, line: &str) -> Result<Value> {
        let asked = format!("{line} --control /tmp/data/corebay.sock -o json");
        let said = self.command(guest, &asked)?.success()?;
        serde_json::from_str(&said).with_context(|| format!("corebay {line}: {said}"))
    }

    /// Fails unless it runs.
    pub fn check(&self, guest: &Guest) -> Result<()> {
        guest
            .run("kill -0 $(cat /tmp/corebay.pid)")
            .context("corebay in the guest has ended")?;
        Ok(())
    }

    /// Asks it to end, if it runs; it must end soon and well.
    pub fn stop(&self, guest: &Guest) -> Result<()> {
        let runs = guest.attempt("[ -e /tmp/corebay.pid ]", COMMAND_LIMIT)?;
        if runs.status == 0 {
            let status = self.end(guest)?;
            let said = || format!("it ended with {status}: {}", self.output(guest));
            ensure!(status == 0, said());
        }
        Ok(())
    }

    /// Asks it to end; it must end soon. Gives its exit status.
    pub fn end(&self, guest: &Guest) -> Result<i32> {
        let status = guest
            .run(
                "read -r pid < /tmp/corebay.pid
                 kill $pid || { echo 'it had ended'; rm /tmp/corebay.pid; exit 1; }
                 for i in $(seq 300); do
                   [ ! -s /tmp/corebay.status ] || { rm /tmp/corebay.pid; cat /tmp/corebay.status; exit 0; }
                   sleep 0.1
                 done
                 echo 'it runs 30 s after SIGTERM'
                 for task in /proc/$pid/task/*; do cat $task/comm $task/stack; done
                 kill -KILL $pid; rm /tmp/corebay.pid; exit 1",
            )
            .with_context(|| format!("end corebay in the guest: {}", self.output(guest)))?;
        status.trim().parse().context("its exit status")
    }

    /// What it wrote since it was started.
    pub fn output(&self, guest: &Guest) -> String {
        guest.run("cat /tmp/corebay.log").unwrap_or_default()
    }
}
