//! stub
use standby::config::*;
fn main() -> std::process::ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let mut args = std::env::args().skip(1);
    let port = args.next().and_then(|a| a.parse().ok()).unwrap_or(8100);
    let path = args.next().unwrap_or_else(|| "/tmp/x/Data.fs".into());
    let msgpack = args.next().is_some();
    let config = Config {
        addresses: vec![Address::Tcp {
            host: "127.0.0.1".into(),
            port,
        }],
        read_only: false,
        invalidation_queue_size: 100,
        invalidation_age: None,
        transaction_timeout: None,
        pid_file: None,
        client_conflict_resolution: true,
        msgpack,
        lock_scope: Default::default(),
        storages: vec![StorageConfig {
            name: "1".into(),
            kind: StorageKind::File(FileStorageConfig {
                path: path.into(),
                create: false,
                read_only: false,
                quota: None,
            }),
        }],
    };
    standby::reactor::run(&config, standby::logging::Handle, |_| ())
}
