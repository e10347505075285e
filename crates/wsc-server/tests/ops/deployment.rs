//! The systemd unit, the compose file and the Kubernetes manifests: they fit each other and the settings beside them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};
use wsc_hub::{Settings, config::parse_duration};
use wsc_testkit::{Client, Launch, ServerProcess, eventually};

use crate::{
    settings::assert_faces_the_internet,
    support::{BIN, docs, load, read, run, yaml},
};

/// How long the hub takes to end, at most.
fn drain(settings: &Settings) -> Duration {
    settings.drain.delay + settings.drain.deadline
}

mod systemd {
    use super::*;

    /// The lines of the unit, by section and key; a key may stand there more than once.
    fn unit() -> BTreeMap<String, Vec<String>> {
        let mut section = String::new();
        let mut entries: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in read("ops/systemd/wsc.service").lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            if let Some(name) = line.strip_prefix('[') {
                name.trim_end_matches(']').clone_into(&mut section);
                continue;
            }
            let (key, value) = line.split_once('=').expect("key=value");
            entries.entry(format!("{section}.{key}")).or_default().push(value.to_owned());
        }
        entries
    }

    #[test]
    fn stopping_leaves_time_for_the_drain() {
        let unit = unit();
        let settings = load("ops/wsc.yaml", &read("ops/wsc.yaml"), &[]);
        let stop = Duration::from_secs(unit["Service.TimeoutStopSec"][0].parse().unwrap());
        assert!(stop > drain(&settings), "{stop:?}");
        assert_eq!(unit["Service.KillSignal"], ["SIGTERM"]);
        assert_eq!(unit["Service.ExecReload"], ["/bin/kill -HUP $MAINPID"]);
    }

    #[test]
    fn there_is_a_descriptor_for_every_connection_and_a_place_for_the_data() {
        let unit = unit();
        let settings = load("ops/wsc.yaml", &read("ops/wsc.yaml"), &[]);
        let descriptors: u64 = unit["Service.LimitNOFILE"][0].parse().unwrap();
        assert!(descriptors > settings.max_connections + 4096, "{descriptors}");
        let state = format!("/var/lib/{}", unit["Service.StateDirectory"][0]);
        assert!(settings.storage.path.starts_with(&state), "{}", settings.storage.path.display());
    }

    /// With the binary under test in the place of the installed one, which need not be there.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs systemd-analyze"]
    async fn systemd_takes_the_unit_and_finds_it_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wsc.service");
        std::fs::write(&path, read("ops/systemd/wsc.service").replace("/usr/local/bin/wsc", BIN)).unwrap();
        let path = path.to_str().unwrap();
        let verified = run("systemd-analyze", &["verify", "--recursive-errors=no", path], "").await.succeeded();
        let complaints = verified.to_string();
        assert!(!complaints.contains("wsc.service"), "{complaints}");
        // On its scale from 0 (closed) to 100; what listens to the network cannot be much below 10.
        run("systemd-analyze", &["security", "--offline=true", "--threshold=20", "--no-pager", path], "")
            .await
            .succeeded();
    }

    /// The groups of system calls that systemd knows, each with what is in it, groups in groups resolved.
    async fn groups() -> BTreeMap<String, BTreeSet<String>> {
        let listed = run("systemd-analyze", &["syscall-filter", "--no-pager"], "").await.succeeded();
        let mut groups: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut group = String::new();
        for line in String::from_utf8(listed.0.stdout).unwrap().lines() {
            match line.trim() {
                name if line.starts_with('@') => name.clone_into(&mut group),
                "" => {}
                comment if comment.starts_with('#') => {}
                call => _ = groups.entry(group.clone()).or_default().insert(call.to_owned()),
            }
        }
        while let Some((outer, inner)) = groups
            .iter()
            .find_map(|(name, calls)| Some((name.clone(), calls.iter().find(|call| call.starts_with('@'))?.clone())))
        {
            let resolved = groups.get(&inner).cloned().unwrap_or_default();
            let calls = groups.get_mut(&outer).unwrap();
            calls.remove(&inner);
            calls.extend(resolved);
        }
        groups
    }

    /// What the unit forbids is nothing that a hub does which starts, stores, talks, reads its settings again and ends.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs strace and systemd-analyze"]
    async fn a_hub_does_nothing_that_the_unit_forbids() {
        let unit = unit();
        let groups = groups().await;
        let [allowed, forbidden] = unit["Service.SystemCallFilter"].as_slice() else { panic!("two lines") };
        let mut allowed = groups[allowed].clone();
        for group in forbidden.strip_prefix('~').expect("the second line forbids").split(' ') {
            allowed.retain(|call| !groups[group].contains(call));
        }

        // Detached, so that the process that the test signals is the hub.
        let launch = Launch {
            args: &["-D", "-f", "-q", "-o", "calls", BIN, "serve", "--config", "settings.yaml"],
            files: &[("settings.yaml", "wsc: {listen: \"127.0.0.1:0\"}\n")],
            env: &[],
        };
        let mut server = ServerProcess::launch("strace", &launch).await;
        let mut bob = Client::connect(&server.ws_url_as("bob")).await;
        server.post("/api/users/bob/messages", &json!({"content": 1, "require_ack": true})).await;
        let delivery = bob.expect_reliable("user_message").await;
        bob.ack(&[delivery["id"].as_str().unwrap()]).await;
        std::fs::write(server.dir().join("settings.yaml"), "wsc: {listen: \"127.0.0.1:0\", ack_timeout: 7s}\n")
            .unwrap();
        eventually("the settings are read again", async || {
            let applied = [("result", "applied")];
            (server.metrics().await.sum("wsc_config_reloads_total", &applied) > 0.0).then_some(())
        })
        .await;
        bob.close().await;
        assert_eq!(server.terminate().await, 0);

        let trace = eventually("the trace is written to its end", async || {
            tokio::task::yield_now().await;
            let trace = std::fs::read_to_string(server.dir().join("calls")).unwrap();
            trace.trim_end().ends_with("+++ exited with 0 +++").then_some(trace)
        })
        .await;
        let calls: BTreeSet<_> = trace
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1)?.split_once('('))
            .map(|(call, _)| call)
            .filter(|call| call.starts_with(|c: char| c.is_ascii_lowercase()))
            .collect();
        assert!(calls.len() > 40, "{calls:?}");
        let wrong: Vec<_> = calls.iter().filter(|call| !allowed.contains(**call)).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        // MemoryDenyWriteExecute and RestrictAddressFamilies.
        assert!(!trace.contains("PROT_WRITE|PROT_EXEC"));
        let families = trace.split("socket(").skip(1).filter_map(|rest| rest.split(',').next());
        for family in families {
            assert!(unit["Service.RestrictAddressFamilies"][0].split(' ').any(|allowed| allowed == family), "{family}");
        }
    }
}

mod compose {
    use super::*;

    #[test]
    fn stopping_leaves_time_for_the_drain() {
        let compose = &yaml("ops/docker/compose.yaml")[0];
        let settings = load("ops/docker/hub/wsc.yaml", &read("ops/docker/hub/wsc.yaml"), &[]);
        let stop = compose["services"]["hub"]["stop_grace_period"].as_str().unwrap();
        assert!(parse_duration(stop).unwrap() > drain(&settings), "{stop}");
    }

    #[test]
    fn the_files_that_are_mounted_are_there() {
        let compose = &yaml("ops/docker/compose.yaml")[0];
        let services = compose["services"].as_object().unwrap();
        let mounts = services.values().flat_map(|service| service["volumes"].as_array().unwrap());
        let mut files = 0;
        for mount in mounts.map(|mount| mount.as_str().unwrap()).filter(|mount| mount.starts_with('.')) {
            let file = docs("ops/docker").join(mount.split(':').next().unwrap());
            assert!(file.exists(), "{mount}");
            files += 1;
        }
        assert_eq!(files, 6);
        let build = &services["hub"]["build"];
        let context = docs("ops/docker").join(build["context"].as_str().unwrap());
        assert!(context.join("Cargo.lock").exists() && context.join(build["dockerfile"].as_str().unwrap()).exists());
    }

    #[test]
    fn prometheus_scrapes_the_internal_port_with_the_key() {
        let prometheus = &yaml("ops/docker/prometheus.yaml")[0];
        let settings = load("ops/docker/hub/wsc.yaml", &read("ops/docker/hub/wsc.yaml"), &[]);
        let job = &prometheus["scrape_configs"][0];
        assert_eq!(job["job_name"], "wsc-hub");
        let target = format!("hub:{}", settings.http.internal_listen.unwrap().port());
        assert_eq!(job["static_configs"][0]["targets"][0], target.as_str());
        assert!(job["authorization"]["credentials_file"].is_string());
        for file in ["ops/docker/grafana-datasource.yaml", "ops/docker/grafana-dashboards.yaml"] {
            assert_eq!(yaml(file)[0]["apiVersion"], 1, "{file}");
        }
    }
}

mod docker {
    use super::*;

    /// The command that the image is built with is one that cargo takes, with the lock file as it is.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_build_command_names_packages_and_features_that_are_there() {
        let dockerfile = read("ops/docker/Dockerfile");
        let command = dockerfile.lines().find(|line| line.contains("cargo build")).unwrap();
        assert_eq!(
            command.trim().trim_end_matches(" \\"),
            "cargo build --release --locked -p wsc-server --features otlp"
        );
        let manifest = docs("../crates/wsc-server/Cargo.toml");
        let manifest = std::fs::read_to_string(manifest).unwrap();
        assert!(manifest.contains("name = \"wsc-server\"") && manifest.contains("\notlp = ["));
        // The toolchain that the workspace asks for.
        let workspace = std::fs::read_to_string(docs("../Cargo.toml")).unwrap();
        let version =
            workspace.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
        assert!(dockerfile.contains(&format!("FROM rust:{version}.")), "{version}");
        assert!(dockerfile.contains(&format!("RUSTUP_TOOLCHAIN={version}.")), "{version}");
    }

    /// The last stage has glibc, libgcc and libm, and nothing else.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "needs ldd"]
    async fn the_binary_needs_no_library_that_the_image_does_not_have() {
        let libraries = run("ldd", &[BIN], "").await.succeeded().to_string();
        let there =
            ["linux-vdso.so", "libc.so", "libm.so", "libgcc_s.so", "libdl.so", "libpthread.so", "librt.so", "ld-linux"];
        let needed: Vec<_> = libraries.lines().filter(|line| line.starts_with('\t')).collect();
        assert!(!needed.is_empty(), "{libraries}");
        for line in needed {
            assert!(there.iter().any(|name| line.contains(name)), "{line}");
        }
    }
}

mod kubernetes {
    use super::*;

    fn manifests() -> BTreeMap<String, Value> {
        let documents = yaml("ops/kubernetes/wsc-hub.yaml");
        let named = documents.into_iter().map(|document| {
            let name =
                format!("{}/{}", document["kind"].as_str().unwrap(), document["metadata"]["name"].as_str().unwrap());
            (name, document)
        });
        named.collect()
    }

    fn settings(manifests: &BTreeMap<String, Value>) -> Settings {
        let text = manifests["ConfigMap/wsc-hub"]["data"]["wsc.yaml"].as_str().unwrap();
        let secrets = manifests["Secret/wsc-hub"]["stringData"].as_object().unwrap();
        let env: Vec<_> = secrets.iter().map(|(key, value)| (key.as_str(), value.as_str().unwrap())).collect();
        load("the ConfigMap", text, &env)
    }

    fn pod(manifests: &BTreeMap<String, Value>) -> &Value {
        &manifests["StatefulSet/wsc-hub"]["spec"]["template"]["spec"]
    }

    #[test]
    fn the_settings_are_those_of_a_hub_that_faces_the_internet() {
        assert_faces_the_internet("the ConfigMap", &settings(&manifests()));
    }

    #[test]
    fn the_pod_is_left_alone_while_it_drains() {
        let manifests = manifests();
        let settings = settings(&manifests);
        let grace = Duration::from_secs(pod(&manifests)["terminationGracePeriodSeconds"].as_u64().unwrap());
        assert!(grace > drain(&settings), "{grace:?}");
        // Out of the endpoints before the first connection is closed, and a failing probe does not kill it meanwhile.
        let ready = &pod(&manifests)["containers"][0]["readinessProbe"];
        let noticed = ready["periodSeconds"].as_u64().unwrap() * ready["failureThreshold"].as_u64().unwrap()
            + ready["timeoutSeconds"].as_u64().unwrap();
        assert!(Duration::from_secs(noticed) < settings.drain.delay, "{noticed} s");
    }

    #[test]
    fn probes_and_services_ask_at_the_ports_that_the_hub_listens_on() {
        let manifests = manifests();
        let settings = settings(&manifests);
        let container = &pod(&manifests)["containers"][0];
        let ports: BTreeMap<_, _> = container["ports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|port| (port["name"].as_str().unwrap(), port["containerPort"].as_u64().unwrap()))
            .collect();
        assert_eq!(ports["http"], u64::from(settings.listen.port()));
        assert_eq!(ports["internal"], u64::from(settings.http.internal_listen.unwrap().port()));
        for (probe, path) in
            [("startupProbe", "/health/live"), ("livenessProbe", "/health/live"), ("readinessProbe", "/health/ready")]
        {
            assert_eq!(container[probe]["httpGet"]["path"], path, "{probe}");
            assert_eq!(container[probe]["httpGet"]["port"], "http", "{probe}");
        }
        for (service, port) in [("Service/wsc-hub", "http"), ("Service/wsc-hub-internal", "internal")] {
            let ports = manifests[service]["spec"]["ports"].as_array().unwrap();
            assert!(ports.len() == 1 && ports[0]["targetPort"] == port, "{service}");
        }
        // Strangers reach the clients' port alone.
        let rules = manifests["NetworkPolicy/wsc-hub"]["spec"]["ingress"].as_array().unwrap();
        let to_internal: Vec<_> = rules
            .iter()
            .filter(|rule| rule["ports"].as_array().unwrap().iter().any(|port| port["port"] == "internal"))
            .collect();
        assert_eq!(to_internal.len(), 1);
        let from = &to_internal[0]["from"];
        assert_eq!(from.as_array().unwrap().len(), 1);
        assert!(from[0]["namespaceSelector"]["matchLabels"].is_object(), "{from}");
    }

    #[test]
    fn the_pod_runs_without_privileges_and_writes_to_its_volume_alone() {
        let manifests = manifests();
        let settings = settings(&manifests);
        let (pod, container) = (pod(&manifests), &pod(&manifests)["containers"][0]);
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["automountServiceAccountToken"], false);
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["capabilities"]["drop"][0], "ALL");
        let mounts = container["volumeMounts"].as_array().unwrap();
        let data = mounts.iter().find(|mount| mount["name"] == "data").unwrap();
        assert!(settings.storage.path.starts_with(data["mountPath"].as_str().unwrap()));
        // A file that is mounted by a subPath never changes: no reload.
        assert!(mounts.iter().all(|mount| mount.get("subPath").is_none()));
    }
}
