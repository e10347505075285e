//! The floor: the database below the inbox, and nothing around it.

use std::time::Instant;

use redb::{Database, TableDefinition};

use crate::{
    Sizes,
    process::{self, Figures},
};

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("raw");

/// Messages in one commit.
const BATCH: u64 = 100;

pub(crate) fn measure(sizes: &Sizes) -> anyhow::Result<Figures> {
    let directory = tempfile::tempdir_in(&sizes.directory)?;
    let database = Database::create(directory.path().join("raw.redb"))?;
    let value = vec![b'x'; sizes.content];
    let batches = sizes.messages.div_ceil(BATCH);
    let started = Instant::now();
    for batch in 0..batches {
        let mut transaction = database.begin_write()?;
        transaction.set_quick_repair(true);
        {
            let mut table = transaction.open_table(TABLE)?;
            for n in batch * BATCH..(batch + 1) * BATCH {
                let mut key = [0; 16];
                key[..8].copy_from_slice(&(n % sizes.users as u64).to_be_bytes());
                key[8..].copy_from_slice(&n.to_be_bytes());
                table.insert(&key[..], &value[..])?;
            }
        }
        transaction.commit()?;
    }
    let (took, messages) = (started.elapsed(), (batches * BATCH) as f64);
    Ok(Figures::default()
        .with("per_second", messages / took.as_secs_f64())
        .with("cpu_us", process::cpu()?.as_secs_f64() * 1e6 / messages))
}
