-- Gives up a lease that is still the job's. KEYS: place. ARGV: job, and where it was taken from another: that lease, ms.
local stands = redis.call('GET', KEYS[1])
if stands and string.match(stands, '^lease/([^/]*)/') == ARGV[1] then
  if ARGV[2] then
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  else
    redis.call('DEL', KEYS[1])
  end
end
return 1
