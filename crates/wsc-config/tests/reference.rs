//! The committed reference page is what the table of keys says.

use std::path::Path;

#[test]
fn committed_page_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let page = wsc_config::reference_markdown();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == page,
        "docs/configuration.md is out of date; write it anew with\n  \
         UPDATE_DOCS=1 cargo test -p wsc-config --test reference"
    );
}
