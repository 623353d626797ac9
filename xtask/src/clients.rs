//! The real clients and the fake providers that the tests run against, in `.test-env/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::args::Args;
use crate::command::{apt_install, headline, quietly, root};

/// Where the clients were installed.
pub struct Clients {
    /// The Python that sees the Python clients.
    pub python: PathBuf,
    /// The folder that holds the Node packages.
    pub node_modules: PathBuf,
}

/// Installs the clients and says where they are.
pub fn run(args: Args) -> Result<()> {
    args.finish()?;
    let clients = install()?;
    println!("ONLYONCE_PYTHON={}", clients.python.display());
    println!("ONLYONCE_NODE_MODULES={}", clients.node_modules.display());
    Ok(())
}

/// Installs the clients that `tests/` pins, unless these very versions are there already.
pub fn install() -> Result<Clients> {
    let environment = root().join(".test-env");
    let clients = Clients {
        python: environment.join("venv/bin/python"),
        node_modules: environment.join("node_modules"),
    };
    fs::create_dir_all(&environment).context("cannot create .test-env")?;
    python(&environment, &clients)?;
    node(&environment)?;
    Ok(clients)
}

fn python(environment: &Path, clients: &Clients) -> Result<()> {
    let wanted = root().join("tests/requirements.txt");
    let stamp = environment.join("requirements.installed");
    if same_text(&wanted, &stamp) && clients.python.exists() {
        return Ok(());
    }
    headline("installing the Python clients");
    apt_install(&[("python3", "python3")])?;
    let venv = environment.join("venv");
    let make = || {
        let mut command = Command::new("python3");
        command.args(["-m", "venv", "--clear"]).arg(&venv);
        quietly("creating a virtual environment", &mut command)
    };
    // Debian ships Python without the part that makes virtual environments.
    if make().is_err() {
        quietly("apt-get update", Command::new("apt-get").arg("update"))?;
        quietly(
            "apt-get install python3-venv",
            Command::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["install", "-y", "--no-install-recommends", "python3-venv"]),
        )?;
        make()?;
    }
    let mut pip = Command::new(&clients.python);
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
    ])
    .arg(&wanted);
    quietly("pip install", &mut pip)?;
    fs::copy(&wanted, &stamp)?;
    Ok(())
}

fn node(environment: &Path) -> Result<()> {
    let lock = root().join("tests/package-lock.json");
    let stamp = environment.join("package-lock.installed");
    if same_text(&lock, &stamp) && environment.join("node_modules").exists() {
        return Ok(());
    }
    headline("installing the Node clients");
    apt_install(&[("node", "nodejs"), ("npm", "npm"), ("chromium", "chromium")])?;
    for name in ["package.json", "package-lock.json"] {
        fs::copy(root().join("tests").join(name), environment.join(name))?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
        .current_dir(environment);
    quietly("npm ci", &mut npm)?;
    fs::copy(&lock, &stamp)?;
    Ok(())
}

fn same_text(one: &Path, other: &Path) -> bool {
    match (fs::read(one), fs::read(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}
