//! The real parts of the tests: servers, interpreters and the platform's published SDKs.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::step::{Outcome, command, output, root, run, works};

/// A program that tests start.
struct Part {
    name: &'static str,
    /// Succeeds where the program is there and complete.
    probe: &'static [&'static str],
    /// What brings it, per package manager, in the order of [`MANAGERS`].
    packages: [&'static str; 4],
}

const PARTS: [Part; 6] = [
    Part { name: "redis-server", probe: &["--version"], packages: ["redis-server", "redis", "redis", "redis"] },
    Part { name: "initdb", probe: &["--version"], packages: POSTGRES },
    Part { name: "postgres", probe: &["--version"], packages: POSTGRES },
    Part {
        name: "python3",
        probe: &["-m", "pip", "--version"],
        packages: ["python3-pip", "python3-pip", "py3-pip", "python"],
    },
    Part { name: "node", probe: &["--version"], packages: ["nodejs", "nodejs", "nodejs", "node"] },
    Part { name: "npm", probe: &["--version"], packages: ["npm", "npm", "npm", "node"] },
];
const POSTGRES: [&str; 4] = ["postgresql", "postgresql-server", "postgresql", "postgresql"];

/// How each system's package manager is told to refresh its list and to install.
const MANAGERS: [(&str, &[&str], &[&str]); 4] = [
    ("apt-get", &["update"], &["install", "-y", "--no-install-recommends"]),
    ("dnf", &[], &["install", "-y"]),
    ("apk", &[], &["add"]),
    ("brew", &[], &["install"]),
];

/// Where PostgreSQL's servers lie that are not on the path: Debian, its own RPMs, Alpine, Homebrew.
const POSTGRES_HOMES: [(&str, &str, &str); 4] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/usr/libexec", "postgresql", ""),
    ("/opt/homebrew/opt", "postgresql@", "bin"),
];

/// Finds all parts, installs what is missing, and writes down for the tests where they are: `target/parts`, one
/// `name path` a line.
pub(crate) fn ensure() -> Outcome {
    let missing: Vec<&Part> = PARTS.iter().filter(|part| find(part).is_none()).collect();
    if !missing.is_empty() {
        install(&missing)?;
    }
    let mut list = String::new();
    for part in &PARTS {
        let path = find(part).ok_or_else(|| format!("{} is still missing after the installation", part.name))?;
        list.push_str(&format!("{} {}\n", part.name, path.display()));
    }
    let (python, js) = (python_sdk()?, js_sdk()?);
    list.push_str(&format!("sdk-python {}\nsdk-js {}\n", python.display(), js.display()));
    write(&root().join("target/parts"), &list)
}

fn write(path: &Path, text: &str) -> Outcome {
    fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

/// The first place where the part is and works.
fn find(part: &Part) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    folders.push("/usr/local/bin".into());
    folders.extend(POSTGRES_HOMES.iter().flat_map(|(home, prefix, bin)| versions(home, prefix, bin)));
    folders
        .into_iter()
        .map(|folder| folder.join(part.name))
        .find(|file| file.is_file() && works(Command::new(file).args(part.probe)))
}

/// The folders `home/prefix*/bin`, newest version first.
fn versions(home: &str, prefix: &str, bin: &str) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir(home)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((version, entry.path().join(bin)))
        })
        .collect();
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.into_iter().map(|(_, path)| path).collect()
}

fn install(missing: &[&Part]) -> Outcome {
    let names = missing.iter().map(|part| part.name).collect::<Vec<_>>().join(", ");
    let manager = (0..MANAGERS.len()).find(|&i| works(command(MANAGERS[i].0).arg("--version")));
    let Some(manager) = manager else {
        return Err(format!(
            "the tests need {names}, and this system has none of apt-get, dnf, apk and brew: install them"
        ));
    };
    let (program, refresh, install) = MANAGERS[manager];
    let mut packages: Vec<&str> = missing.iter().map(|part| part.packages[manager]).collect();
    packages.sort_unstable();
    packages.dedup();
    let is_root = output(command("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    let prefix: &[&str] = match program {
        "brew" => &[],
        _ if is_root => &[],
        _ if works(command("sudo").args(["-n", "true"])) => &["sudo", "-n"],
        _ => {
            let by_hand = [&["sudo", program], install, &packages].concat().join(" ");
            return Err(format!("the tests need {names}; install them with\n\n    {by_hand}\n"));
        }
    };
    let call = |args: &[&str]| {
        let words = [prefix, &["env", "DEBIAN_FRONTEND=noninteractive", program], args].concat();
        run(command(words[0]).args(&words[1..]))
    };
    if !refresh.is_empty() {
        call(refresh)?;
    }
    call(&[install, &packages].concat())
}

/// The folder with `cozepy` in it.
fn python_sdk() -> Outcome<PathBuf> {
    sdk("cozepy==0.20.0", |spec, folder| {
        let python = find(&PARTS[3]).ok_or("python3 is gone")?;
        let options =
            ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-warn-conflicts", "--target"];
        run(command(python).args(options).arg(folder).arg(spec).env("PIP_ROOT_USER_ACTION", "ignore"))
    })
}

/// The folder whose `node_modules` has `@coze/api`. Nobody's install scripts run, and no lock file is written.
fn js_sdk() -> Outcome<PathBuf> {
    sdk("@coze/api@1.3.9", |spec, folder| {
        let options = ["install", "--silent", "--no-save", "--no-package-lock", "--ignore-scripts", "--prefix"];
        run(command("npm").args(options).arg(folder).arg(spec))
    })
}

/// The folder of one version. It gets its name only when it is complete, so a broken installation is done again.
fn sdk(spec: &str, install: impl Fn(&str, &Path) -> Outcome) -> Outcome<PathBuf> {
    let done = root().join("target/sdk").join(spec.replace('/', "-"));
    if done.is_dir() {
        return Ok(done);
    }
    let begun = root().join("target/sdk/begun");
    let io = |e: std::io::Error| format!("cannot prepare {}: {e}", done.display());
    if begun.exists() {
        fs::remove_dir_all(&begun).map_err(io)?;
    }
    fs::create_dir_all(&begun).map_err(io)?;
    install(spec, &begun)?;
    fs::rename(&begun, &done).map_err(io)?;
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_only_where_its_probe_succeeds() {
        let part = |name, probe| Part { name, probe, packages: [""; 4] };
        assert!(find(&part("sh", &["-c", "true"])).is_some());
        assert!(find(&part("sh", &["-c", "false"])).is_none());
        assert!(find(&part("there-is-no-such-program", &[])).is_none());
    }

    #[test]
    fn the_newest_version_comes_first() {
        let home = env::temp_dir().join(format!("xtask-versions-{}", std::process::id()));
        for version in ["9", "16", "15", "common"] {
            fs::create_dir_all(home.join(version)).expect("writable");
        }
        let found = versions(home.to_str().expect("UTF-8"), "", "bin");
        fs::remove_dir_all(&home).expect("ours");
        assert_eq!(found, ["16", "15", "9"].map(|version| home.join(version).join("bin")));
    }
}
