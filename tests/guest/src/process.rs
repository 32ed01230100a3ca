//! Owns running helper programs to their end, and processes that must not outlive the lab.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

/// Runs a program to its end and gives its standard output; what it said is in the error.
pub fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().display().to_string();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{program} ended with {}: {}",
            output.status,
            tail(said.trim(), 12)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The program's path, if it is installed.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut folders = std::env::split_paths(&path).chain(system);
    folders.find_map(|folder| Some(folder.join(program)).filter(|file| file.is_file()))
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A background process with its output in a file; it is killed, by its own id, when dropped.
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `program`; standard output and error go to the end of `log`.
    pub fn start(program: &Path, arguments: &[String], log: &Path) -> Result<Process> {
        let out = File::options().create(true).append(true).open(log)?;
        // Dies with us even when we are killed ourselves.
        let mut command = if find("setpriv").is_some() {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.args(arguments).stdin(Stdio::null());
        command.stdout(out.try_clone()?).stderr(out);
        let name = program
            .file_name()
            .unwrap_or_default()
            .display()
            .to_string();
        let child = command
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        Ok(Process {
            child,
            name,
            log: log.to_owned(),
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote so far.
    pub fn output(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Fails, with its last words, if it ended.
    pub fn check_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!(
                "{} ended with {status}: {}",
                self.name,
                tail(&self.output(), 20)
            );
        }
        Ok(())
    }

    /// Whether it fell over its own fault within this time: an access outside its memory, an assertion.
    pub fn crashed(&mut self, wait: Duration) -> bool {
        const OWN_FAULTS: [Signal; 5] = [
            Signal::SEGV,
            Signal::ABORT,
            Signal::BUS,
            Signal::ILL,
            Signal::FPE,
        ];
        let start = Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                let signal = status.signal();
                return OWN_FAULTS
                    .iter()
                    .any(|fault| Some(fault.as_raw()) == signal);
            }
            if start.elapsed() > wait {
                return false;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks it to end (SIGTERM) and waits; fails when it has not ended by then.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        rustix::process::kill_process(id.context("no process id")?, Signal::TERM)?;
        let start = Instant::now();
        while start.elapsed() < limit {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!(
            "{} still runs {} s after SIGTERM",
            self.name,
            limit.as_secs()
        );
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(script: &str) -> bool {
        let folder = tempfile::tempdir().expect("a folder");
        let shell = find("sh").expect("a shell");
        let arguments = ["-c".to_owned(), script.to_owned()];
        let log = folder.path().join("log");
        let mut process = Process::start(&shell, &arguments, &log).expect("starts");
        process.crashed(Duration::from_secs(10))
    }

    #[test]
    fn a_crash_is_a_signal_of_its_own_fault() {
        assert!(ends("kill -SEGV $$"));
        assert!(ends("kill -ABRT $$"));
        assert!(!ends("kill -KILL $$"), "somebody else's doing");
        assert!(!ends("exit 139"));
    }
}
