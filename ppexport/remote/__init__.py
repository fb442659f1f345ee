"""Work on devices behind ssh and adb: transports, jobs that outlive a connection, output that is not trusted."""
