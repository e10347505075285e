//! Settings that change while the hub runs.

use wsc_config::{Source, Watch, WatchError};
use wsc_node::Hub;

/// Has a hub follow its settings' source until it shuts down: what changes there, or in the files that the settings
/// name, is applied as [`Hub::reload`] does. The hub needs a
/// [`settings_source`](crate::HubBuilder::settings_source) that reads the same.
///
/// # Errors
///
/// Where neither the system nor a look every now and then can tell what changes.
///
/// # Cancel safety
///
/// When the future is dropped, changes are no longer noticed; a reload that has begun is applied whole or not at all.
pub async fn follow_settings(hub: &Hub, source: &Source) -> Result<(), WatchError> {
    let mut watch = Watch::start(source)?;
    loop {
        watch.follow(hub.named_files())?;
        tokio::select! {
            () = watch.changed() => {}
            () = hub.draining() => return Ok(()),
        }
        // What came of it, the hub has said.
        let _ = hub.reload().await;
    }
}
