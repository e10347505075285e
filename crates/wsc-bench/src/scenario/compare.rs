//! The hub beside others.
use crate::{Program, args::CompareArgs};
pub(crate) async fn run(_args: &CompareArgs, _program: &Program) -> anyhow::Result<()> {
    anyhow::bail!("x")
}
