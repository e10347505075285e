//! Holds the manifests to the picture in `ARCHITECTURE.md`: who may depend on whom, and what every member owes.
//!
//! A new edge between two of our crates is an architecture change. Make it in its own commit, together with
//! `ARCHITECTURE.md` and the table below.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// The crates of one layer above the protocol; none of them may know another.
const SIBLINGS: [&str; 8] = [
    "wsc-transport",
    "wsc-delivery",
    "wsc-failure",
    "wsc-events",
    "wsc-store",
    "wsc-cluster",
    "wsc-auth",
    "wsc-config",
];

/// The picture: every crate with the crates of ours that it may depend on.
///
/// A crate that is missing here fails the test, so that a new one has to take its place in the picture first.
fn picture() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let protocol = BTreeSet::from(["wsc-protocol"]);
    let below_node: BTreeSet<_> = SIBLINGS.into_iter().chain(protocol.clone()).collect();
    let below_hub = &below_node | &BTreeSet::from(["wsc-node"]);

    let mut picture: BTreeMap<_, _> = SIBLINGS.into_iter().map(|sibling| (sibling, protocol.clone())).collect();
    picture.extend([
        ("wsc-protocol", BTreeSet::new()),
        ("wsc-node", below_node.clone()),
        ("wsc-hub", below_hub),
        ("wsc-server", BTreeSet::from(["wsc-hub", "wsc-bench"])),
        ("wsc-examples", BTreeSet::from(["wsc-hub", "wsc-client"])),
        // The load tool measures the hub from outside, so it knows no more than what is on the wire.
        ("wsc-bench", BTreeSet::new()),
        ("wsc-bench-targets", BTreeSet::new()),
        ("wsc-client", protocol),
        // Nothing that is tested with it may wait for the node to compile, and it may not test a crate's own
        // types against a second copy of them.
        ("wsc-testkit", below_node),
    ]);
    picture
}

/// For tests only: whoever needs it at run time has a test helper in a release.
const DEV_ONLY: &str = "wsc-testkit";

/// The crates whose tests may use the test support. Those below the node may not: the testkit may be built on them,
/// and the cycle would give them two copies of each of their types.
const MAY_TEST_WITH: [&str; 5] = ["wsc-node", "wsc-hub", "wsc-server", "wsc-client", "wsc-examples"];

/// The crates whose tests may use the client beyond their own edges: it speaks to a hub from outside, as their users do.
const CLIENT: &str = "wsc-client";
const MAY_TEST_WITH_CLIENT: [&str; 1] = ["wsc-server"];

/// One member of the workspace, as `cargo metadata` describes it.
#[derive(Debug)]
struct Member {
    name: String,
    manifest: PathBuf,
    edges: Vec<Edge>,
}

/// A dependency on another of our crates.
#[derive(Debug)]
struct Edge {
    to: String,
    dev: bool,
}

impl Edge {
    fn normal(to: &str) -> Self {
        Self { to: to.to_owned(), dev: false }
    }

    fn dev(to: &str) -> Self {
        Self { to: to.to_owned(), dev: true }
    }
}

/// Says what is wrong with one crate's edges, a line for each.
fn violations(name: &str, edges: &[Edge]) -> Vec<String> {
    let picture = picture();
    let Some(allowed) = picture.get(name) else {
        return vec![format!("{name} has no place in the picture")];
    };
    edges
        .iter()
        .filter_map(|edge| {
            let to = edge.to.as_str();
            let wrong = if !edge.dev {
                (!allowed.contains(to)).then_some("an edge that the picture does not have")
            } else if to == DEV_ONLY {
                (!MAY_TEST_WITH.contains(&name)).then_some("a cycle: the testkit is built on it")
            } else if to == CLIENT && MAY_TEST_WITH_CLIENT.contains(&name) {
                None
            } else if name == DEV_ONLY {
                Some("a dev-dependency of the testkit on ours: such a test belongs to that crate")
            } else {
                // A test may use what the crate itself may use, nothing from beside or above.
                (!allowed.contains(to)).then_some("a dev edge that the picture does not have")
            };
            wrong.map(|why| format!("{name} -> {to}: {why}"))
        })
        .collect()
}

/// Asks cargo, which has resolved inheritance, renames and target tables already; nothing is fetched or locked.
fn members() -> Vec<Member> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--no-deps", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata starts");
    assert!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages is a list");
    let names: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();

    packages
        .iter()
        .map(|package| Member {
            name: text(&package["name"]),
            manifest: PathBuf::from(text(&package["manifest_path"])),
            edges: package["dependencies"]
                .as_array()
                .expect("dependencies is a list")
                .iter()
                .filter(|dependency| dependency["name"].as_str().is_some_and(|n| names.contains(n)))
                .map(|dependency| Edge {
                    to: text(&dependency["name"]),
                    // A build script is as much a part of the release as the code.
                    dev: dependency["kind"] == "dev",
                })
                .collect(),
        })
        .collect()
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string in cargo metadata").to_owned()
}

fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn every_edge_is_in_the_picture() {
    let members = members();
    assert!(members.len() > SIBLINGS.len(), "cargo metadata lists the members");
    let found: Vec<String> = members.iter().flat_map(|member| violations(&member.name, &member.edges)).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn every_crate_folder_is_a_member_named_like_it() {
    let members: BTreeMap<String, PathBuf> = members().into_iter().map(|m| (m.name, m.manifest)).collect();
    for entry in fs::read_dir(workspace_root().join("crates")).expect("crates/ is there") {
        let folder = entry.expect("an entry of crates/").file_name();
        let folder = folder.to_str().expect("a crate folder in UTF-8");
        let manifest = members.get(folder).unwrap_or_else(|| panic!("crates/{folder} is no member of that name"));
        assert!(
            manifest.ends_with(format!("crates/{folder}/Cargo.toml")),
            "{folder} is the package of {}",
            manifest.display()
        );
    }
}

#[test]
fn the_check_notices_forbidden_edges() {
    for (name, edge) in [
        ("wsc-protocol", Edge::normal("wsc-config")),
        ("wsc-store", Edge::normal("wsc-delivery")),
        ("wsc-transport", Edge::normal("wsc-node")),
        ("wsc-transport", Edge::dev("wsc-config")),
        ("wsc-transport", Edge::dev("wsc-testkit")),
        ("wsc-node", Edge::normal("wsc-hub")),
        ("wsc-node", Edge::normal("wsc-testkit")),
        ("wsc-server", Edge::normal("wsc-protocol")),
        ("wsc-server", Edge::normal("wsc-node")),
        ("wsc-client", Edge::normal("wsc-delivery")),
        ("wsc-testkit", Edge::normal("wsc-node")),
        ("wsc-testkit", Edge::dev("wsc-protocol")),
        ("wsc-server", Edge::normal("wsc-client")),
        ("wsc-node", Edge::dev("wsc-client")),
        ("wsc-unheard-of", Edge::normal("wsc-protocol")),
    ] {
        assert_eq!(violations(name, &[edge]).len(), 1, "{name}");
    }
    for (name, edge) in [
        ("wsc-store", Edge::normal("wsc-protocol")),
        ("wsc-node", Edge::normal("wsc-store")),
        ("wsc-node", Edge::dev("wsc-testkit")),
        ("wsc-hub", Edge::normal("wsc-node")),
        ("wsc-server", Edge::normal("wsc-hub")),
        ("wsc-server", Edge::dev("wsc-testkit")),
        ("wsc-server", Edge::dev("wsc-client")),
        ("wsc-client", Edge::normal("wsc-protocol")),
    ] {
        assert_eq!(violations(name, &[edge]), Vec::<String>::new());
    }
}

#[test]
fn every_member_inherits_the_lints() {
    let strays: Vec<String> = members()
        .into_iter()
        .filter(|member| {
            let manifest = fs::read_to_string(&member.manifest).expect("a member's manifest");
            !inherits_lints(&manifest)
        })
        .map(|member| member.name)
        .collect();
    assert!(strays.is_empty(), "no `[lints] workspace = true` in: {strays:?}");
}

/// Looks for `workspace = true` in the section `[lints]`; cargo itself says nothing about lints in its metadata.
fn inherits_lints(manifest: &str) -> bool {
    manifest
        .lines()
        .map(str::trim)
        .skip_while(|line| *line != "[lints]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .any(|line| line.replace(' ', "") == "workspace=true")
}

#[test]
fn every_library_says_what_it_is() {
    // One line can name a crate; it cannot also say what the crate leaves to others.
    const LINES: usize = 3;

    let silent: Vec<String> = members()
        .into_iter()
        .filter(|member| {
            let folder = member.manifest.parent().expect("a manifest lies in a folder");
            let Ok(source) = fs::read_to_string(folder.join("src/lib.rs")) else {
                return false;
            };
            // The examples are a package beside crates/, read file by file.
            if folder.ends_with("examples") {
                return false;
            }
            let lines = source.lines().take_while(|line| line.starts_with("//!")).count();
            lines < LINES && !source.contains("#![doc = include_str!(")
        })
        .map(|member| member.name)
        .collect();
    assert!(silent.is_empty(), "src/lib.rs opens without a crate doc (`//! …`, {LINES} lines or more) in: {silent:?}");
}
