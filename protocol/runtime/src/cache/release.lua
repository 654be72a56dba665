-- Gives up a lease that is still the job's. KEYS: lease. ARGV: job.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return 1
