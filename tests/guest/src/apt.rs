//! Owns the private apt configuration that fetches the guest's packages without touching the machine's.
//!
//! The machine's own Debian sources are copied with the suite names changed; lists, cache and state
//! live in the lab's folder, and an empty package status makes apt resolve the complete closure.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fmt, fs};

use anyhow::{Context, Result, ensure};

use crate::process;

/// The error's outermost context when the guest's packages cannot be had on this machine.
#[derive(Clone, Copy, Debug)]
pub struct PackagesUnavailable;

impl fmt::Display for PackagesUnavailable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the guest's Debian packages cannot be fetched here")
    }
}

/// A private apt: its folder holds sources, lists, state and the downloaded packages.
pub struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Prepares `folder` for packages of `suite`, from the sources of this machine.
    pub fn new(folder: &Path, suite: &str) -> Result<Apt> {
        let codename = host_codename()?;
        let sources = folder.join("sources");
        let _ = fs::remove_dir_all(&sources);
        for part in [
            "sources",
            "empty",
            "state",
            "none/partial",
            "lists/partial",
            "cache/archives/partial",
        ] {
            fs::create_dir_all(folder.join(part))?;
        }
        let mut found = 0;
        for file in source_files()? {
            let Ok(text) = fs::read_to_string(&file) else {
                continue;
            };
            let deb822 = file.extension().is_some_and(|e| e == "sources");
            let changed = if deb822 {
                change_stanzas(&text, &codename, suite)
            } else {
                change_lines(&text, &codename, suite)
            };
            if !changed.is_empty() {
                let name = file.file_name().context("a source file without a name")?;
                fs::write(sources.join(name), changed)?;
                found += 1;
            }
        }
        ensure!(
            found > 0,
            "this machine has no apt source of Debian {codename}"
        );
        fs::write(folder.join("state/status"), "")?;
        Ok(Apt {
            folder: folder.canonicalize()?,
        })
    }

    /// Downloads `packages` and everything they depend on; gives the package files.
    pub fn download(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        process::run(self.command().arg("update")).context("apt-get update")?;
        let install = [
            "install",
            "--download-only",
            "--no-install-recommends",
            "--yes",
        ];
        process::run(self.command().args(install).args(packages)).context("apt-get install")?;
        // The cache may hold older versions too: asked about an empty cache, apt names its choice.
        let empty = format!(
            "-oDir::Cache::archives={}",
            self.folder.join("none").display()
        );
        let chosen = process::run(
            self.command()
                .arg(empty)
                .args(install)
                .arg("--print-uris")
                .args(packages),
        )?;
        let archives = self.folder.join("cache/archives");
        let mut files = Vec::new();
        for line in chosen.lines() {
            let name = line
                .split_whitespace()
                .nth(1)
                .context("a line of apt-get --print-uris")?;
            files.push(archives.join(name));
        }
        for file in &files {
            ensure!(file.exists(), "apt-get did not leave {}", file.display());
        }
        Ok(files)
    }

    fn command(&self) -> Command {
        let at = |part: &str| self.folder.join(part).display().to_string();
        let mut command = Command::new("apt-get");
        command
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        for (option, value) in [
            ("Dir::Etc::sourcelist", "/dev/null".into()),
            ("Dir::Etc::sourceparts", at("sources")),
            ("Dir::Etc::preferences", "/dev/null".into()),
            ("Dir::Etc::preferencesparts", at("empty")),
            ("Dir::State", at("state")),
            ("Dir::State::lists", at("lists")),
            ("Dir::State::status", at("state/status")),
            ("Dir::Cache", at("cache")),
            ("Dir::Cache::archives", at("cache/archives")),
            ("APT::Architecture", "amd64".into()),
            ("APT::Install-Recommends", "false".into()),
            ("APT::Keep-Downloaded-Packages", "true".into()),
            ("APT::Sandbox::User", String::new()),
            ("Acquire::Retries", "3".into()),
            ("Debug::NoLocking", "true".into()),
        ] {
            command.arg(format!("-o{option}={value}"));
        }
        command.arg("-qq");
        command
    }
}

fn host_codename() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("no /etc/os-release")?;
    let value = |key: &str| {
        let line = release
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim_matches('"').to_owned())
    };
    ensure!(
        value("ID").as_deref() == Some("debian"),
        "this machine does not run Debian"
    );
    value("VERSION_CODENAME").context("no VERSION_CODENAME in /etc/os-release")
}

fn source_files() -> Result<Vec<PathBuf>> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        for entry in entries {
            files.push(entry?.path());
        }
    }
    files.retain(|file| {
        file.extension()
            .is_some_and(|e| e == "list" || e == "sources")
    });
    files.sort();
    Ok(files)
}

/// The suite that stands for `suite` in the other release; none for another vendor's or a backport.
fn change_suite(suite: &str, from: &str, to: &str) -> Option<String> {
    match suite.strip_prefix(from)? {
        "" => Some(to.to_owned()),
        rest @ ("-updates" | "-security") => Some(format!("{to}{rest}")),
        _ => None,
    }
}

fn change_stanzas(text: &str, from: &str, to: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let mut changed = String::new();
    for stanza in lines.split(|line| line.trim().is_empty()) {
        let field = |name: &str| {
            stanza
                .iter()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
        };
        let main = field("Components").is_some_and(|c| c.split_whitespace().any(|c| c == "main"));
        let suites = field("Suites").unwrap_or_default().split_whitespace();
        let suites: Vec<String> = suites.filter_map(|s| change_suite(s, from, to)).collect();
        if !main || suites.is_empty() || field("Enabled") == Some("no") {
            continue;
        }
        for line in stanza {
            if line.starts_with("Suites:") {
                changed += &format!("Suites: {}\n", suites.join(" "));
            } else {
                changed += &format!("{line}\n");
            }
        }
        changed.push('\n');
    }
    changed
}

fn change_lines(text: &str, from: &str, to: &str) -> String {
    let mut changed = String::new();
    for line in text
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("deb "))
    {
        let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let Some(suite) = words.iter().position(|word| word.starts_with(from)) else {
            continue;
        };
        let main = words[suite..].iter().any(|word| word == "main");
        if let (true, Some(name)) = (main, change_suite(&words[suite], from, to)) {
            words[suite] = name;
            changed += &format!("{}\n", words.join(" "));
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanzas_of_the_release_move_and_others_are_left_out() {
        let text = "Types: deb\n# a comment\nURIs: http://mirror/debian\nSuites: old old-updates \
                    old-backports\nComponents: main\n\nTypes: deb\nURIs: http://vendor\nSuites: any\n\
                    Components: main\n";
        let changed = change_stanzas(text, "old", "new");
        assert_eq!(
            changed,
            "Types: deb\nURIs: http://mirror/debian\nSuites: new new-updates\nComponents: main\n\n"
        );
    }

    #[test]
    fn one_line_sources_move() {
        let text = "deb [signed-by=/k] http://mirror/debian old main contrib\n# deb x old main\n\
                    deb http://mirror/security old-security main\ndeb http://vendor stable main\n";
        assert_eq!(
            change_lines(text, "old", "new"),
            "deb [signed-by=/k] http://mirror/debian new main contrib\n\
             deb http://mirror/security new-security main\n"
        );
    }
}
