"""Object stores that speak S3, as the gateway uses them: looking, signing, and the begin and end of uploads."""
