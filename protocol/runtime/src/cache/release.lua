-- Gives up a lease that is still the job's. KEYS: place. ARGV: job.
local stands = redis.call('GET', KEYS[1])
if stands and string.match(stands, '^lease/([^/]*)/') == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return 1
