use std::{sync::Arc, time::Duration};

use super::*;
use crate::conformance;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_the_contract() {
    keeps_the_contract(EmbeddedConfig::default()).await;
}

/// Everything goes to the tables as soon as it can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_the_contract_with_resting_mail() {
    keeps_the_contract(resting()).await;
}

async fn keeps_the_contract(config: EmbeddedConfig) {
    let directory = tempfile::tempdir().unwrap();
    let stores = AtomicU64::new(0);
    conformance::check_all(async |limits| {
        let path = directory.path().join(stores.fetch_add(1, Ordering::Relaxed).to_string());
        let config = EmbeddedConfig { limits, ..config.clone() };
        Arc::new(EmbeddedInbox::open(&path, config).unwrap().0) as Arc<dyn InboxStore>
    })
    .await;
}

fn resting() -> EmbeddedConfig {
    EmbeddedConfig { rest_after: Duration::ZERO, ..EmbeddedConfig::default() }
}
